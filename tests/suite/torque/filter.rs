//! What `qsub` says before a job exists.

use anyhow::{Result, ensure};
use shifter_tests::call::Output;
use shifter_tests::world::User::Alice;

use crate::node::image_id;

use super::Site;

fn filter(site: &Site, options: &[&str], script: &str) -> Result<Output> {
    let node = site.nodes.node("t1")?;
    let call = node.call(["/opt/shifter/bin/shifter-submit-filter"]);
    call.args(options.iter().copied())
        .by(Alice)
        .input(script)
        .output()
}

#[test]
fn privileged_torque_filter_pins_the_image_and_refuses_mistakes() -> Result<()> {
    let site = Site::start(1)?;
    let script = "#!/bin/bash\n#PBS -N x\necho $(id) \"'\\\n";
    // Jobs of others are none of its business.
    for options in [
        &[][..],
        &["-v", "UDI=nowhere:1"],
        &["-l", "nodes=2:ppn=16,gres=matlab", "-v", "UDI=nowhere:1"],
        &["-I"],
    ] {
        let passed = filter(&site, options, script)?;
        ensure!(
            passed.code == 0 && passed.stdout == script,
            "{options:?}: {passed}"
        );
    }
    let ours = ["-l", "nodes=2:ppn=16,gres=shifter16"];
    let good = filter(&site, &[&ours[..], &["-v", "UDI=tiny"]].concat(), script)?;
    ensure!(
        good.code == 0 && good.stdout.contains(&image_id()),
        "{good}"
    );
    ensure!(
        good.stdout.starts_with("#!/bin/bash\n") && good.stdout.ends_with("echo $(id) \"'\\\n"),
        "{good}"
    );
    let inside = "#!/bin/sh\n#PBS -l gres=shifter16\n#PBS -v UDI=nowhere:1\ntrue\n";
    for (options, script) in [
        (&[&ours[..], &["-v", "UDI=nowhere:1"]].concat()[..], script),
        (
            &[&ours[..], &["-v", "UDI=tiny,SHIFTER_VOLUME=/etc:/etc"]].concat()[..],
            script,
        ),
        (&[&ours[..], &["-v", "UDI=$(id)"]].concat()[..], script),
        (&[][..], inside),
    ] {
        let refused = filter(&site, options, script)?;
        ensure!(
            refused.code == 255 && refused.stdout.is_empty(),
            "{options:?}: {refused}"
        );
        ensure!(refused.stderr.starts_with("shifter"), "{refused}");
    }
    Ok(())
}
