//! Certificates made with openssl.

use std::fs;
use std::path::Path;
use std::process::Command;

fn openssl(dir: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Makes a certificate authority, `ca.pem`, and a certificate for `names`, `cert.pem` with
/// `key.pem`, that is good for `days` from now on.
pub fn make(dir: &Path, names: &str, days: i32) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        dir,
        &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"),
    );
    openssl(
        dir,
        &format!("req {key} -keyout key.pem -out request.pem -subj /CN=server"),
    );
    fs::write(dir.join("extensions"), format!("subjectAltName={names}\n")).unwrap();
    openssl(
        dir,
        &format!(
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem \
             -days {days} -extfile extensions"
        ),
    );
}

/// Makes a certificate that vouches for itself.
pub fn make_own(dir: &Path, names: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        dir,
        &format!(
            "req -x509 {key} -keyout key.pem -out cert.pem -subj /CN=own -days 2 -addext \
             subjectAltName={names}"
        ),
    );
}
