//! `make bench`: see the library.

fn main() -> anyhow::Result<()> {
    shifter_benches::run(std::env::args().skip(1).collect())
}
