//! The product, installed and configured as at a site, under a real Slurm cluster and registry.
//!
//! Names: `cluster_*` need the cluster, `privileged_*` and `install_*` the installed programs alone,
//! `kernel_*` another kernel in an emulated machine, `bench_*` test the bench itself. All run as root
//! in `tests/world.sh`; with cargo-nextest each in a world of its own, otherwise one after the other
//! in one.

mod abandoned;
mod autoshift;
mod bench;
mod ccm;
mod commands;
mod containers;
mod entrypoint;
mod erofs;
mod failures;
mod faults;
mod figures;
mod identity;
mod images;
mod images_equal;
mod images_limits;
mod images_secure;
mod install;
mod jobs;
mod kernel;
mod limits;
mod long;
mod mistakes;
mod modules;
mod mpi;
mod node;
mod secure_cluster;
mod seen;
mod selftest;
mod sharing;
#[path = "../soak/mod.rs"]
mod soak;
mod ssh;
mod steps;
mod teardown;
mod torque;
mod x11;
