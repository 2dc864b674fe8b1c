//! Kicking a vCPU thread out of KVM_RUN, without a race.
//!
//! A plain signal is lost if it comes just before KVM_RUN. So the handler sets `immediate_exit` of the
//! thread's own kvm_run page: whenever the signal comes, the next KVM_RUN returns at once
//! (Documentation/virt/kvm/api.rst, 5, `immediate_exit`).
#![allow(
    unsafe_code,
    reason = "a signal handler, a pointer into the kvm_run page, pthread_kill, and a timer that signals one thread"
)]

use std::cell::Cell;
use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` in the kvm_run page of this thread's vCPU; null in all other threads.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The handler touches one thread-local pointer that needs no construction and no destructor: that is
/// async-signal-safe in a statically linked program.
extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: a non-null pointer was set by `Registration` for this very thread and is taken back
        // before the vCPU is dropped; KVM and this thread access one byte, and only this thread is here.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once in the process.
pub fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| {
        register_signal_handler(SIGRTMIN(), on_kick)
            .err()
            .map(|e| e.errno())
    });
    match result {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

/// A vCPU whose thread can be kicked, for as long as this lives.
pub struct Kickable {
    fd: VcpuFd,
    run: *const kvm_run,
}

impl Kickable {
    /// Makes this thread the vCPU's.
    pub fn new(mut fd: VcpuFd) -> Self {
        let run = fd.get_kvm_run();
        IMMEDIATE_EXIT.set(ptr::from_mut(&mut run.immediate_exit));
        let run = ptr::from_ref(run);
        Self { fd, run }
    }

    /// KVM_RUN. Beside the exit: the bytes of one access, if it is port I/O; a string instruction (`rep outsb`)
    /// comes as one exit of many accesses.
    ///
    /// # Errors
    /// KVM's, EINTR after a kick among them.
    pub fn run(&mut self) -> Result<(VcpuExit<'_>, usize), kvm_ioctls::Error> {
        let page = self.run;
        let exit = self.fd.run()?;
        // SAFETY: the page is mapped for as long as `fd` lives. The field is a byte of plain data whatever
        // the exit was, and lies outside of what the exit borrows (a port's data follow the structure).
        let io_size = unsafe { (&raw const (*page).__bindgen_anon_1.io.size).read_volatile() };
        Ok((exit, usize::from(io_size).max(1)))
    }

    /// The vCPU.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Makes the next KVM_RUN return at once, or not.
    pub fn set_immediate_exit(&mut self, on: bool) {
        self.fd.set_kvm_immediate_exit(u8::from(on));
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        // Before the kvm_run page is unmapped.
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// The right to kick one thread. Held by the handle, which joins the thread before it goes away.
#[derive(Debug, Clone, Copy)]
pub struct Kick {
    thread: libc::pthread_t,
}

impl Kick {
    /// A kick for the calling thread.
    pub fn of_this_thread() -> Self {
        // SAFETY: pthread_self has no conditions.
        let thread = unsafe { libc::pthread_self() };
        Self { thread }
    }

    /// Sends the signal.
    pub fn kick(&self) {
        // SAFETY: the thread is joined only by the VcpuHandle's drop, and every holder of a `Kick` (the
        // handle and the throttle, which the handle's owner stops first) ends before that, so the id is
        // valid, also if the thread has already returned.
        unsafe { libc::pthread_kill(self.thread, SIGRTMIN()) };
    }
}

/// Kicks the thread that made it, after a time. It is a timer of the kernel's (CLOCK_MONOTONIC, SIGEV_THREAD_ID;
/// timer_create(2)), so no other thread has to be scheduled for that.
#[derive(Debug)]
pub struct KickTimer {
    id: libc::timer_t,
}

impl KickTimer {
    /// A timer for the calling thread, not set.
    ///
    /// # Errors
    /// The kernel has no timer left for this user.
    pub fn of_this_thread() -> io::Result<Self> {
        // SAFETY: sigevent is plain data, for which zeros are a value: a notification by signal 0, of nobody.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: gettid has no conditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut id = ptr::null_mut();
        // SAFETY: both pointers are to live variables of the right types, which the kernel reads and writes only
        // during the call. The thread is one of this process.
        let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id) };
        match result {
            0 => Ok(Self { id }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Kicks once, after `time`; what was set before is forgotten. Zero is never.
    pub fn set(&mut self, time: Duration) {
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        // SAFETY: the timer was made by `of_this_thread` and lives until the drop; `value` is a valid time that
        // the kernel only reads, and the old one is not asked for.
        let result = unsafe { libc::timer_settime(self.id, 0, &value, ptr::null_mut()) };
        // EINVAL alone is documented, for a bad time or timer: neither can be.
        debug_assert_eq!(result, 0);
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `of_this_thread`, and nobody has its id any more.
        unsafe { libc::timer_delete(self.id) };
    }
}
