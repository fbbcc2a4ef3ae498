//! The tables of the configuration: keys, types, defaults, and what each means.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::torque::Torque;
use crate::env::{EnvChanges, SiteEnv};
use crate::volmap::{self, CacheFs};

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this system, used where the batch system gives no cluster name.
    pub system: String,
    /// Prefix under which Shifter is installed (`bin/shifterimg`, `sbin/setupRoot`).
    pub prefix: PathBuf,
    /// Image type of a reference that names none.
    pub default_image_type: String,
    /// Image types that this site defines beside docker, id, local, file and custom.
    pub image_types: Vec<String>,
    /// The image store.
    pub store: Store,
    /// How registries are reached; the key is `host` or `host:port`.
    pub registry: BTreeMap<String, Registry>,
    /// What every root contains.
    pub root: Root,
    /// The environment of every container.
    pub env: SiteEnv,
    /// Modules that users select with `--module`.
    pub module: BTreeMap<String, Module>,
    /// Modules in use where the user selects none; `--module=none` takes them away.
    pub default_modules: Vec<String>,
    /// Programs of the site that run while a root is built.
    pub hooks: Hooks,
    /// File systems for which users may have per-node caches; the key is the file system's
    /// directory, which contains what users name before the colon.
    pub per_node_cache: BTreeMap<String, NodeCache>,
    /// Kernel modules that a job's set-up loads.
    pub kernel: Kernel,
    /// What the nodes of a job tell each other.
    pub shared_state: SharedState,
    /// Numbers for those who watch the nodes.
    pub metrics: Metrics,
    /// The Slurm plugin.
    pub slurm: Slurm,
    /// The hooks of Torque, OpenPBS and ALPS.
    pub torque: Torque,
    /// ssh between the nodes of a job.
    pub ssh: Ssh,
}

/// The image store.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Directory of the site store.
    pub path: PathBuf,
    /// Numeric uid that owns the site store and pulls into it.
    pub image_owner: u32,
    /// Command through which users pull into the site store; the arguments are appended.
    /// Empty: users pull into their own store.
    pub site_pull_command: Vec<String>,
    /// Directory for the layers of the site store between pulls; none: a directory in the store.
    pub cache_dir: Option<PathBuf>,
    /// Largest size of what is kept there, `"0"`: nothing.
    pub cache_size_limit: String,
    /// The same for each user's own store.
    pub user_cache_size_limit: String,
    /// Whether and how images that users own are run.
    pub user_images: UserImages,
    /// File system of new images in the site store.
    pub format: ImageFormat,
    /// Whether erofs images are mounted although `format` is another: those of before.
    pub mount_erofs: bool,
    /// How new images are compressed: `zstd`, `gzip` or `xz`, with a level after a colon, or `lz4`.
    pub compression: String,
    /// Bytes of a file that are compressed together: a power of two from 4k to 1m.
    pub block_size: String,
    /// Directories of the host below which users may run a directory tree as an image
    /// (`local:/path`).
    pub local_dirs: Vec<PathBuf>,
    /// Trees of the host that users run by a name of at most 31 bytes (`local:NAME`), as with
    /// CHOS.
    pub trees: BTreeMap<String, PathBuf>,
}

/// File systems of images.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// What every kernel and every tool reads.
    #[default]
    Squashfs,
    /// What recent kernels read with less work.
    Erofs,
}

/// What may be done with images that users own.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum UserImages {
    /// They are refused.
    No,
    /// squashfuse mounts them, as the user, in a user namespace of the user's.
    #[default]
    Fuse,
    /// The kernel mounts them: the site trusts its users not to attack squashfs.
    Kernel,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Speak http instead of https.
    pub plain_http: bool,
    /// File with the certificate authorities (PEM) that vouch for this registry, or a directory of
    /// such files.
    pub ca_file: Option<PathBuf>,
    /// Places that are asked first, in this order: `host[:port][/path]`, where the path comes
    /// before the image's. How each is reached is said under its own name.
    pub mirrors: Vec<String>,
    /// Whether the registry itself is never asked.
    pub mirrors_only: bool,
    /// File with logins for this registry, in the form of docker's `config.json`.
    pub credentials_file: Option<PathBuf>,
    /// Host that may see the login besides the registry and its neighbours in the same domain.
    pub token_server: Option<String>,
}

/// What every root contains.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Root {
    /// Size limit of the in-memory root, in MiB.
    pub tmpfs_size_mib: u32,
    /// Directories of the host that every container sees, in the volume grammar
    /// `FROM[:TO[:flags]]`. Users' volumes must lie within them.
    pub site_mounts: Vec<String>,
    /// Directory of the host placed read-only at /opt/udiImage.
    pub udi_image: Option<PathBuf>,
    /// Size limit of what users write with `--writable-tmpfs`, in MiB; 0 forbids it.
    pub writable_tmpfs_size_mib: u32,
    /// Directories with specifications of devices (CDI), for modules.
    pub cdi_dirs: Vec<PathBuf>,
    /// Seconds that `shifter` waits for one answer of the image store or of what a user names; 0: as
    /// long as it takes.
    pub answer_timeout_secs: u32,
    /// Where a job's root can be seen.
    pub visibility: Visibility,
    /// Where the host sees it, if it does.
    pub udi_mount: PathBuf,
}

/// Where a job's root can be seen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// In a namespace of its own, which its processes join.
    #[default]
    Namespace,
    /// In the host's too, at one place, for those who change root.
    Host,
}

/// A module.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Module {
    /// False hides the module.
    pub enabled: bool,
    /// Changes to the environment.
    pub env: EnvChanges,
    /// Modules that cannot be used together with this one.
    pub conflicts: Vec<String>,
    /// Directories of the host that the container sees, as in [`Root::site_mounts`].
    pub site_mounts: Vec<String>,
    /// Directory of the host that the container sees, read-only, as
    /// /opt/udiImage/modules/NAME.
    pub copy_path: Option<PathBuf>,
    /// Libraries of the host that take the place of the image's; the last component may have
    /// `*`. Refused where the image's C library or the library's interface does not fit.
    pub libraries: Vec<String>,
    /// Devices of a CDI specification, `vendor/class=name`.
    pub cdi: Vec<String>,
    /// Program and arguments that run as root, outside of the image, while the root is built.
    pub root_hook: Vec<String>,
    /// Program and arguments that run as the user in the container, before the command.
    pub user_hook: Vec<String>,
}

/// Programs of the site that run as root, outside of the image, while a root is built.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Program and arguments that run before the site's mounts are made.
    pub pre_mount: Vec<String>,
    /// Program and arguments that run when the root is complete.
    pub post_mount: Vec<String>,
    /// Seconds after which a hook is ended and the set-up fails.
    pub timeout_secs: u32,
}

/// A file system for which users may have per-node caches.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct NodeCache {
    /// Directory in which the backing files are made: mode 0700, of the owner's, below no
    /// directory that users can write.
    pub dir: PathBuf,
    /// Numeric uid as which the backing files are made, where the file system denies root.
    #[serde(default)]
    pub owner: u32,
    /// Largest size of one cache: a number with one of the units k, m, g, t, p.
    #[serde(default = "NodeCache::default_size_limit")]
    pub size_limit: String,
    /// File systems that a cache may have inside.
    #[serde(default = "NodeCache::default_fs_types")]
    pub fs_types: Vec<CacheFs>,
}

/// Kernel modules that a job's set-up loads before it mounts anything.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// The modules, by name; those present or built in are left alone.
    pub preload: Vec<String>,
    /// Directory with one directory of modules for each kernel release.
    pub kmod_base_path: PathBuf,
    /// Loop devices that the loop module makes in advance (`max_loop`); 0: the kernel's default.
    pub max_loop: u32,
}

/// Numbers for those who watch the nodes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Directory, root's alone, in which set-ups and teardowns are counted for node_exporter's
    /// textfile collector.
    pub textfile: Option<PathBuf>,
}

/// A directory on shared storage in which the nodes of a job tell each other who its user is.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SharedState {
    /// The directory, of the owner's, mode 0700; none: every node looks users up itself.
    pub path: Option<PathBuf>,
    /// Numeric uid as which it is used, where the file system denies root.
    pub owner: u32,
    /// Seconds after which what is there is no longer believed, and removed.
    pub max_age_secs: u32,
    /// Seconds for which a node waits for another one's answer, and at most as many again.
    pub wait_secs: u32,
    /// Seconds that storage and name service may take beyond that, before a node does without.
    pub answer_timeout_secs: u32,
}

/// The Slurm plugin.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// Seconds within which an image must be resolved at submission.
    pub lookup_timeout_secs: u32,
    /// Seconds for which sbatch, salloc and srun wait while they pull a missing image; 0: they
    /// refuse the job and name the pull command.
    pub submit_pull_timeout_secs: u32,
    /// Seconds within which a node's root must be ready.
    pub setup_timeout_secs: u32,
    /// Whether jobs with an image run inside it without saying so (`--autoshift`).
    pub autoshift: bool,
    /// In which images jobs may do that.
    pub autoshift_images: AutoshiftImages,
    /// The images for `listed`: references as `shifter images` shows them, or their beginnings with
    /// `*` after them.
    pub autoshift_list: Vec<String>,
    /// Whether jobs with whole nodes may have the host's own environment as their container
    /// (`--ccm`).
    pub ccm: bool,
    /// Slurm's `SlurmdSpoolDir`, in which batch scripts and the directories of PMIx are: containers
    /// show it at the same place. `%n` is the node's name, `%h` the host's.
    pub spool_dir: PathBuf,
}

/// In which images a job may run without saying so in every command.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AutoshiftImages {
    /// In any.
    #[default]
    All,
    /// In those of [`Slurm::autoshift_list`].
    Listed,
    /// In none.
    Off,
}

impl Slurm {
    /// True if a job may run inside the image of this reference without saying so.
    pub fn permits_autoshift(&self, reference: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => reference.starts_with(beginning),
            None => pattern == reference,
        };
        match self.autoshift_images {
            AutoshiftImages::All => true,
            AutoshiftImages::Listed => self.autoshift_list.iter().any(fits),
            AutoshiftImages::Off => false,
        }
    }
}

/// ssh between the nodes of a job, in its container.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// Which jobs have it.
    pub enable: SshJobs,
    /// TCP port on which each node listens.
    pub port: u16,
    /// Variables that a client may set on another node; a `*` at the end stands for any text.
    pub accept_env: Vec<String>,
    /// Whether clients may be connected further through a node (`ssh -L`).
    pub tcp_forwarding: bool,
    /// Connections that a node may have at once.
    pub max_connections: u32,
}

/// Which jobs have ssh between their nodes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SshJobs {
    /// None.
    #[default]
    Off,
    /// Those that ask for it.
    Ask,
    /// Those that ask for it, and every other that has an image.
    Always,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            system: "cluster".into(),
            prefix: "/usr".into(),
            default_image_type: "docker".into(),
            image_types: Vec::new(),
            store: Store::default(),
            registry: BTreeMap::new(),
            root: Root::default(),
            env: SiteEnv::default(),
            module: BTreeMap::new(),
            default_modules: Vec::new(),
            hooks: Hooks::default(),
            per_node_cache: BTreeMap::new(),
            kernel: Kernel::default(),
            shared_state: SharedState::default(),
            metrics: Metrics::default(),
            slurm: Slurm::default(),
            torque: Torque::default(),
            ssh: Ssh::default(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: "/var/lib/shifter/images".into(),
            image_owner: 0,
            site_pull_command: Vec::new(),
            cache_dir: None,
            cache_size_limit: "32g".into(),
            user_cache_size_limit: "4g".into(),
            user_images: UserImages::Fuse,
            format: ImageFormat::default(),
            mount_erofs: false,
            compression: "zstd:1".into(),
            block_size: "64k".into(),
            local_dirs: Vec::new(),
            trees: BTreeMap::new(),
        }
    }
}

impl Store {
    /// True if the kernel mounts erofs images of the site store.
    pub fn mounts_erofs(&self) -> bool {
        self.mount_erofs || self.format == ImageFormat::Erofs
    }

    /// Returns how many bytes of layers the site store keeps; [`Config::parse`] has checked the
    /// text.
    ///
    /// [`Config::parse`]: super::Config::parse
    pub fn cache_size_limit_bytes(&self) -> u64 {
        cache_size(&self.cache_size_limit).unwrap_or(0)
    }

    /// Returns how many bytes of layers a user's own store keeps.
    pub fn user_cache_size_limit_bytes(&self) -> u64 {
        cache_size(&self.user_cache_size_limit).unwrap_or(0)
    }
}

/// Parses the size of a cache, which may be nothing.
pub(super) fn cache_size(text: &str) -> Result<u64, &'static str> {
    match text {
        "0" => Ok(0),
        text => volmap::parse_size(text),
    }
}

impl Default for Root {
    fn default() -> Self {
        Self {
            tmpfs_size_mib: 64,
            site_mounts: Vec::new(),
            udi_image: None,
            writable_tmpfs_size_mib: 1024,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            visibility: Visibility::default(),
            udi_mount: "/var/udiMount".into(),
            answer_timeout_secs: 60,
        }
    }
}

impl Default for Module {
    fn default() -> Self {
        Self {
            enabled: true,
            env: EnvChanges::default(),
            conflicts: Vec::new(),
            site_mounts: Vec::new(),
            copy_path: None,
            libraries: Vec::new(),
            cdi: Vec::new(),
            root_hook: Vec::new(),
            user_hook: Vec::new(),
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            pre_mount: Vec::new(),
            post_mount: Vec::new(),
            timeout_secs: 10,
        }
    }
}

impl NodeCache {
    fn default_size_limit() -> String {
        "1t".into()
    }

    fn default_fs_types() -> Vec<CacheFs> {
        vec![CacheFs::Xfs, CacheFs::Ext4]
    }

    /// Returns the largest size of one cache in bytes; [`Config::parse`] has checked the text.
    ///
    /// [`Config::parse`]: super::Config::parse
    pub fn size_limit_bytes(&self) -> u64 {
        volmap::parse_size(&self.size_limit).unwrap_or(0)
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            preload: Vec::new(),
            kmod_base_path: "/lib/modules".into(),
            max_loop: 0,
        }
    }
}

impl Default for SharedState {
    fn default() -> Self {
        Self {
            path: None,
            owner: 0,
            max_age_secs: 3600,
            wait_secs: 10,
            answer_timeout_secs: 20,
        }
    }
}

impl Default for Slurm {
    fn default() -> Self {
        Self {
            lookup_timeout_secs: 10,
            submit_pull_timeout_secs: 0,
            setup_timeout_secs: 60,
            autoshift: false,
            autoshift_images: AutoshiftImages::All,
            autoshift_list: Vec::new(),
            ccm: false,
            spool_dir: "/var/spool/slurmd".into(),
        }
    }
}

impl Default for Ssh {
    fn default() -> Self {
        let accepted = [
            "LANG", "LC_*", "TZ", "OMP_*", "OMPI_*", "PRTE_*", "PMI*", "HYDRA_*", "MPI*", "SLURM_*",
        ];
        Self {
            enable: SshJobs::Off,
            port: 1204,
            accept_env: accepted.map(str::to_owned).to_vec(),
            tcp_forwarding: false,
            max_connections: 128,
        }
    }
}
