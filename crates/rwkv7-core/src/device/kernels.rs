//! Compiled GPU kernels, kept for the next start of the program.
//!
//! CubeCL compiles each kernel at its first launch and forgets all of them when the program ends, unless its configuration says
//! otherwise. The configuration is read once, when the first device is opened, so the program has to change it before.

use std::path::PathBuf;

/// Target of the log records of [`CompilationLog::Info`].
pub const COMPILATION_TARGET: &str = "cubecl::compilation";

/// Whether each kernel that is compiled makes a record of the crate `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompilationLog {
    /// As the configuration of CubeCL says, which by default is no record.
    Off,
    /// A record of level info and target [`COMPILATION_TARGET`] for each kernel, written when its compilation begins. A kernel
    /// that is read from the cache makes none. A configuration that logs compilations elsewhere stays as it is.
    Info,
}

/// What becomes of the compiled kernels of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelCache {
    /// They are in this file, which holds the results of autotuning too. The backends CUDA, ROCm, Vulkan (SPIR-V) and native Metal
    /// write each kernel to it once it is compiled; WGSL is compiled at every start, and only its driver may keep something.
    Kept(PathBuf),
    /// They are compiled again at the next start.
    NotKept(NotKept),
}

/// Why kernels are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// The program has no GPU backend.
    #[error("no GPU backend is compiled in")]
    NoGpu,
    /// A `cubecl.toml` or `burn.toml` in this folder or one above it says so.
    #[error("cubecl.toml or burn.toml has `cache = false` in its compilation section")]
    Configured,
    /// The executable carries no build id. Kernels are kept by it, so that the kernels of an older build are not taken for those
    /// of this one.
    #[error(
        "the program has no build id to tell its kernels from those of another build; link it with -C link-arg=-Wl,--build-id"
    )]
    NoBuildId,
    /// A device was opened before, or the program set CubeCL's configuration itself.
    #[error("the configuration of CubeCL was fixed before, without the cache")]
    TooLate,
}

/// Keeps compiled kernels from now on, in the file in which CubeCL keeps the results of autotuning: in the folder
/// `target/environment` of the Cargo project that the current directory is in, else in the user's cache directory.
///
/// A `cubecl.toml` or `burn.toml` and the environment variables of CubeCL are read as ever, and what they set stays. Call this
/// before the first device is opened; a second call changes nothing.
pub fn keep_kernels(log: CompilationLog) -> KernelCache {
    #[cfg(all(feature = "gpu", not(target_family = "wasm")))]
    return configuration::keep_kernels(log);
    #[cfg(not(all(feature = "gpu", not(target_family = "wasm"))))]
    {
        let _ = log;
        KernelCache::NotKept(NotKept::NoGpu)
    }
}

/// The configuration of CubeCL.
#[cfg(all(feature = "gpu", not(target_family = "wasm")))]
mod configuration {
    use std::sync::Arc;

    use cubecl::config::{
        CubeClRuntimeConfig, RuntimeConfig,
        compilation::{CompilationConfig, CompilationLogLevel},
    };
    use cubecl_environment::sync::Mutex;
    use serde::{Deserialize, Serialize};

    use super::{CompilationLog, KernelCache, NotKept};

    pub fn keep_kernels(log: CompilationLog) -> KernelCache {
        let asked = File::from_current_dir().compilation.cache;
        let identified = buildid::build_id().is_some();
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = asked.unwrap_or(identified);
        if log == CompilationLog::Info {
            log_compilations(&mut config.compilation);
        }
        let first = CubeClRuntimeConfig::try_set(config);
        if CubeClRuntimeConfig::get().compilation.cache {
            return KernelCache::Kept(cubecl::environment::path());
        }
        KernelCache::NotKept(match asked {
            Some(false) => NotKept::Configured,
            _ if !first => NotKept::TooLate,
            _ => NotKept::NoBuildId,
        })
    }

    /// Lets CubeCL log compilations through the crate `log`, unless it logs them elsewhere already.
    fn log_compilations(config: &mut CompilationConfig) {
        if matches!(config.logger.level, CompilationLogLevel::Disabled) {
            config.logger.level = CompilationLogLevel::Basic;
            config.logger.log = Some(Default::default());
        }
    }

    /// The one key of the user's file that says whether kernels are kept, read as CubeCL reads its configuration. CubeCL's own type
    /// has `false` both for a key that says so and for none.
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct File {
        #[serde(default)]
        compilation: Compilation,
    }

    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Compilation {
        cache: Option<bool>,
    }

    /// What the trait wants and nothing here uses.
    static UNUSED: Mutex<Option<Arc<File>>> = Mutex::new(None);

    impl RuntimeConfig for File {
        fn storage() -> &'static Mutex<Option<Arc<Self>>> {
            &UNUSED
        }

        fn file_names() -> &'static [&'static str] {
            CubeClRuntimeConfig::file_names()
        }

        fn section_file_names() -> &'static [(&'static str, &'static str)] {
            CubeClRuntimeConfig::section_file_names()
        }
    }
}
