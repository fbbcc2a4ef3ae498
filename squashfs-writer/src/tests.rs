//! Images beyond 4 GiB, made with a gap that takes no space.

use super::*;
use std::io::Write;
use std::process::Command;

#[test]
fn images_may_be_larger_than_4_gib() {
    let mut out = tempfile::NamedTempFile::new().unwrap();
    let options = Options {
        block_size: 4096,
        threads: 2,
        ..Options::default()
    };
    let mut writer = Writer::new(out.as_file_mut(), &options).unwrap();
    let text: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    let mut tree = Tree::new(Attributes {
        mode: 0o755,
        ..Attributes::default()
    })
    .unwrap();
    for (name, gap) in [("low", 0), ("high", 5 << 30), ("higher", 1 << 40)] {
        writer.leave_gap(gap).unwrap();
        let mut file = writer.start_file();
        file.write_all(&text).unwrap();
        let data = file.finish().unwrap();
        let attributes = Attributes {
            mode: 0o644,
            ..Attributes::default()
        };
        let inode = tree.add_inode(Kind::File(data), attributes).unwrap();
        tree.link(Tree::ROOT, name.as_bytes(), inode).unwrap();
    }
    let (_, summary) = writer.finish(&tree).unwrap();
    assert!(summary.bytes > 1 << 40);
    for name in ["low", "high", "higher"] {
        let mut unsquashfs = Command::new("unsquashfs");
        let output = unsquashfs
            .arg("-cat")
            .arg(out.path())
            .arg(name)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.stdout == text, "{name} differs");
    }
}
