//! NVIDIA's library, opened at run time. The types are cudarc's; the library is looked for here, since cudarc asks for `libnccl.so`
//! and ends the process where there is only the `libnccl.so.2` that packages and Python's wheels install.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use libloading::Library as SharedLibrary;

/// What NCCL's functions return. A number and no enumeration: newer versions know more errors.
pub(super) type Code = c_int;

type Reduction = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    ncclRedOp_t,
    ncclComm_t,
    cudaStream_t,
) -> Code;

/// The functions used here, as NCCL's user guide describes them ("NCCL API").
pub(super) struct Library {
    /// As NCCL writes it: 22304 is 2.23.4.
    pub(super) version: c_int,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    pub(super) comm_init_rank: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Code,
    pub(super) comm_abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub(super) comm_get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    pub(super) all_reduce: Reduction,
    pub(super) reduce_scatter: Reduction,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code,
    pub(super) broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    /// Came with 2.13.
    get_last_error: Option<unsafe extern "C" fn(ncclComm_t) -> *const c_char>,
    /// The functions are there as long as this is.
    _opened: SharedLibrary,
}

/// The names under which NCCL is installed: that of its packages and wheels first, then that of its development files.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The first version that adds numbers in bf16 (2.10; NCCL's release notes).
const OLDEST: c_int = 21_000;

const INSTALL: &str = "Install NCCL 2.10 or newer: the package libnccl2 of NVIDIA's repositories, the module of your cluster, or Python's \
    nvidia-nccl-cu13 (-cu12 with CUDA 12), whose folder nvidia/nccl/lib then has to be in LD_LIBRARY_PATH";

/// The library, opened once.
///
/// # Errors
/// What is missing, and what to do.
pub(super) fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| open(&NAMES)).as_ref().map_err(Clone::clone)
}

fn open(names: &[&str]) -> Result<Library, String> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: NVIDIA's initialisers run, which set up the library's own state and nothing else.
        match unsafe { SharedLibrary::new(*name) } {
            Ok(opened) => return Library::new(opened).map_err(|reason| format!("{name}: {reason}. {INSTALL}.")),
            Err(error) => reasons.push(loader_words(&error)),
        }
    }
    Err(format!(
        "NCCL, which carries numbers between NVIDIA GPUs, could not be opened: {}. {INSTALL}.",
        reasons.join("; ")
    ))
}

/// What the system's loader says; the error itself only says which of its functions failed.
fn loader_words(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A function by its name.
///
/// # Safety
/// `F` is the type of a pointer to that function.
unsafe fn function<F: Copy>(opened: &SharedLibrary, name: &str) -> Result<F, String> {
    // SAFETY: as above.
    match unsafe { opened.get::<F>(name) } {
        Ok(symbol) => Ok(*symbol),
        Err(error) => Err(format!("it has no function {name}: {}", loader_words(&error))),
    }
}

impl Library {
    fn new(opened: SharedLibrary) -> Result<Self, String> {
        let mut version = 0;
        // SAFETY: the types are those of NCCL's user guide, the same in all versions 2.
        let (get_version, mut library) = unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int) -> Code = function(&opened, "ncclGetVersion")?;
            let library = Self {
                version,
                get_unique_id: function(&opened, "ncclGetUniqueId")?,
                comm_init_rank: function(&opened, "ncclCommInitRank")?,
                comm_abort: function(&opened, "ncclCommAbort")?,
                comm_get_async_error: function(&opened, "ncclCommGetAsyncError")?,
                all_reduce: function(&opened, "ncclAllReduce")?,
                reduce_scatter: function(&opened, "ncclReduceScatter")?,
                all_gather: function(&opened, "ncclAllGather")?,
                broadcast: function(&opened, "ncclBroadcast")?,
                get_error_string: function(&opened, "ncclGetErrorString")?,
                get_last_error: function(&opened, "ncclGetLastError").ok(),
                _opened: opened,
            };
            (get_version, library)
        };
        // SAFETY: the function writes one integer, which outlives the call.
        let code = unsafe { get_version(&mut version) };
        library.check(code, std::ptr::null_mut())?;
        if version < OLDEST {
            return Err(format!("it is version {}, which is too old", written(version)));
        }
        library.version = version;
        Ok(library)
    }

    /// A returned code as a result.
    ///
    /// # Errors
    /// NCCL's words for it.
    pub(super) fn check(&self, code: Code, communicator: ncclComm_t) -> Result<(), String> {
        if code == ncclResult_t::ncclSuccess as Code {
            return Ok(());
        }
        // SAFETY: NCCL answers with a constant text for any code.
        let mut words = unsafe { text((self.get_error_string)(code)) };
        if let Some(get_last_error) = self.get_last_error {
            // SAFETY: the communicator is NCCL's or null, which stands for none; the text is copied before NCCL is called again.
            let last = unsafe { text(get_last_error(communicator)) };
            if !last.trim().is_empty() {
                words = format!("{words}: {}", last.trim());
            }
        }
        Err(format!("NCCL says: {words}"))
    }
}

/// A text of NCCL's.
///
/// # Safety
/// The pointer is null or leads to a text that ends with a zero.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// A version as people write it. Until 2.8 NCCL left out a zero.
pub(super) fn written(version: c_int) -> String {
    let (major, rest) = if version < 10_000 {
        (version / 1000, version % 1000)
    } else {
        (version / 10_000, version % 10_000)
    };
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_write_them() {
        assert_eq!(written(22_304), "2.23.4");
        assert_eq!(written(21_003), "2.10.3");
        assert_eq!(written(2_804), "2.8.4");
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_install() {
        let reason = open(&["libnccl-that-is-not-there.so.2"]).err().unwrap();
        assert!(reason.contains("libnccl-that-is-not-there.so.2"), "{reason}");
        assert!(
            reason.contains("LD_LIBRARY_PATH") && reason.contains("2.10"),
            "{reason}"
        );
    }

    #[test]
    fn a_library_that_is_not_nccl_is_an_error() {
        let reason = open(&["libc.so.6"]).err().unwrap();
        assert!(reason.contains("ncclGetVersion"), "{reason}");
    }
}
