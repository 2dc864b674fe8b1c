//! What each kind of thread may ask of the kernel, and why: the one table.
//!
//! A filter is inherited by the threads that a thread starts, and can only become stricter. So whoever starts threads
//! may do what these may (`Kind::starts`), and those exposed to a guest or a peer start none: a vCPU, a virtio device's
//! thread and a stream may do little more than their work on descriptors that are open already. No thread may start a
//! program, open a new process, or make memory executable.
//!
//! What is not listed kills the process. The list is made for the static glibc of the program; `--sandbox log` shows
//! what another one needs.

use super::ioctls::*;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The main loop.
    Main,
    /// `vcpu-N`: runs the guest, and answers its exits.
    Vcpu,
    /// `virtio-N`: the queues and the backend of one device.
    Virtio,
    /// `migration` of a source, `snapshot` and `predict`: the engine, with a guest that runs here.
    Source,
    /// `migration` of a receiver, and `restore`: waits for sources or reads snapshots, and makes a VM for the guest
    /// that comes.
    Receiver,
    /// `stream`, `probe`: a connection of a move.
    Stream,
    /// `verify`: computes digests of memory.
    Verify,
    /// Connects to a destination.
    Dial,
    /// `resolver`: looks up one name.
    Resolve,
    /// `settle`: has disks write back.
    Settle,
    /// `pager`: fills the memory of a restored guest as it is touched.
    Pager,
    /// `dirty-rate`: watches how the guest writes.
    DirtyRate,
    /// `dirty-ring`: empties the rings.
    DirtyRing,
    /// `announce`: a few frames after an arrival.
    Announce,
    /// `control`: takes control connections.
    Control,
    /// `control-client`: one of them.
    ControlClient,
    /// `console-in`, `console-out`, `console`.
    Console,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 17] = [
        Kind::Main,
        Kind::Vcpu,
        Kind::Virtio,
        Kind::Source,
        Kind::Receiver,
        Kind::Stream,
        Kind::Verify,
        Kind::Dial,
        Kind::Resolve,
        Kind::Settle,
        Kind::Pager,
        Kind::DirtyRate,
        Kind::DirtyRing,
        Kind::Announce,
        Kind::Control,
        Kind::ControlClient,
        Kind::Console,
    ];

    /// The kinds of threads that it starts once it has its filter.
    pub fn starts(self) -> &'static [Kind] {
        match self {
            Kind::Main => &[Kind::Source, Kind::DirtyRate, Kind::Announce],
            Kind::Source => &[
                Kind::Stream,
                Kind::Verify,
                Kind::Dial,
                Kind::Resolve,
                Kind::Settle,
                Kind::DirtyRing,
            ],
            Kind::Receiver => &[
                Kind::Vcpu,
                Kind::Virtio,
                Kind::Stream,
                Kind::Verify,
                Kind::Pager,
            ],
            Kind::Dial => &[Kind::Resolve],
            Kind::DirtyRate => &[Kind::DirtyRing],
            Kind::Control => &[Kind::ControlClient],
            Kind::Vcpu
            | Kind::Virtio
            | Kind::Stream
            | Kind::Verify
            | Kind::Resolve
            | Kind::Settle
            | Kind::Pager
            | Kind::DirtyRing
            | Kind::Announce
            | Kind::ControlClient
            | Kind::Console => &[],
        }
    }

    /// The calls of its own work.
    fn work(self) -> &'static [Group] {
        match self {
            Kind::Main => &[EVENT_LOOP, WAKE_UPS, LINE, FAREWELL],
            Kind::Vcpu => &[RUN, LINE, VCPU_STATE, THROTTLE, RING, CARD, CARD_QUEUES],
            Kind::Virtio => &[TURNS, EVENT_LOOP, LINE, CARD, CARD_QUEUES, DISK, RELEASE],
            Kind::Source => &[
                LINE,
                CONNECTIONS,
                LEND,
                ROOM,
                KEEP,
                PLACEMENT,
                FURTHER,
                PAGES,
                DIRTY_LOG,
                VM_STATE,
                WAKE_UPS,
                CARD,
                FENCE,
                WRITE_OUT,
            ],
            Kind::Receiver => &[
                LINE,
                CONNECTIONS,
                FAULTS,
                HUGE,
                PREFAULT,
                ROOM,
                PLACEMENT,
                LISTEN,
                DESCRIPTORS,
                PAGES,
                MAKE_VM,
                WAKE_UPS,
                KICK,
                EVENT_LOOP,
                CARD_SETUP,
                FENCE,
                FORGET,
            ],
            Kind::Stream => &[CONNECTIONS, LEND, PLACEMENT, ARM, HOLES, HUGE],
            Kind::Verify => &[],
            Kind::Dial => &[CONNECTIONS, FURTHER],
            Kind::Resolve => &[FURTHER, RESOLVER],
            Kind::Settle => &[WRITE_OUT],
            Kind::Pager => &[FAULTS, FAREWELL],
            Kind::DirtyRate => &[DIRTY_LOG, PAGES],
            Kind::DirtyRing => &[RING],
            Kind::Announce => &[CARD, LINE],
            Kind::Control => &[LISTEN],
            Kind::ControlClient => &[CONNECTIONS, FOOTPRINT, PASSED, LINE],
            Kind::Console => &[LISTEN, CONNECTIONS],
        }
    }

    /// All that it may do, the calls of those it starts among them. A call may be there several times, with different
    /// arguments.
    pub fn calls(self) -> Vec<Call> {
        let own = [BASE].into_iter().chain(self.work().iter().copied());
        let makes = (!self.starts().is_empty()).then_some(THREADS);
        let mut calls: Vec<Call> = own.chain(makes).flatten().copied().collect();
        for kind in self.starts() {
            calls.extend(kind.calls());
        }
        calls
    }

    /// What fails for it, instead of killing: calls that the C library makes on the way, and can do without.
    pub fn fails(self) -> Vec<(Call, i32)> {
        let mut fails = Vec::new();
        if !self.starts().is_empty() {
            // Its flags lie in memory, where a filter cannot look; glibc takes clone then.
            fails.push((call(libc::SYS_clone3), libc::ENOSYS));
        }
        if self == Kind::Resolve || self.starts_any(Kind::Resolve) {
            // nsswitch.conf may name modules, which glibc tries to load, and goes on without.
            fails.push((with(libc::SYS_mmap, 2, EXEC, EXEC), libc::EPERM));
        } else {
            // How many processors there are glibc asks /sys before it makes a ninth arena of its heap, and std asks
            // cgroups in /proc; both go on without. Where names are looked up Landlock refuses it instead.
            fails.push((call(libc::SYS_openat), libc::EACCES));
        }
        fails
    }

    fn starts_any(self, wanted: Kind) -> bool {
        let mut starts = self.starts().iter();
        starts.any(|&kind| kind == wanted || kind.starts_any(wanted))
    }
}

/// A system call, and with which arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Which argument is looked at, if any.
    pub only: Only,
}

/// Which arguments a call may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Only {
    /// Any.
    Any,
    /// The lower 32 bits of the argument at `index` are `value` where `mask` has ones.
    Masked {
        /// From 0.
        index: u8,
        /// The bits that are looked at.
        mask: u32,
        /// What they are.
        value: u32,
    },
    /// The first argument is this process.
    OwnProcess,
}

type Group = &'static [Call];

const fn call(number: i64) -> Call {
    Call {
        number,
        only: Only::Any,
    }
}

/// A call with an argument that is `value` where `mask` has ones.
const fn with(number: i64, index: u8, mask: u32, value: u32) -> Call {
    let only = Only::Masked { index, mask, value };
    Call { number, only }
}

/// A call with one value of an argument.
const fn equal(number: i64, index: u8, value: i32) -> Call {
    with(number, index, u32::MAX, value.cast_unsigned())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "requests have 32 bits; the kernel looks at no more"
)]
const fn ioctl(request: u64) -> Call {
    with(libc::SYS_ioctl, 1, u32::MAX, request as u32)
}

const EXEC: u32 = libc::PROT_EXEC.cast_unsigned();

/// Every thread: memory (never executable), locks, time, its own end, and reading and writing what is open.
const BASE: Group = &[
    call(libc::SYS_read),
    call(libc::SYS_write),
    call(libc::SYS_readv),
    call(libc::SYS_writev),
    call(libc::SYS_close),
    // Before a descriptor is closed, a debug build of std asks whether it is open.
    equal(libc::SYS_fcntl, 1, libc::F_GETFD),
    // A socket pair wakes another thread (the console, a cancel); std sends and receives on those.
    call(libc::SYS_sendto),
    call(libc::SYS_recvfrom),
    call(libc::SYS_poll),
    call(libc::SYS_ppoll),
    call(libc::SYS_futex),
    call(libc::SYS_brk),
    with(libc::SYS_mmap, 2, EXEC, 0),
    with(libc::SYS_mprotect, 2, EXEC, 0),
    call(libc::SYS_munmap),
    call(libc::SYS_mremap),
    // What the C library's heap has no use for, and the stack of a thread that has ended.
    equal(libc::SYS_madvise, 2, libc::MADV_DONTNEED),
    call(libc::SYS_clock_gettime),
    call(libc::SYS_clock_nanosleep),
    call(libc::SYS_nanosleep),
    call(libc::SYS_gettid),
    call(libc::SYS_getpid),
    // Hash maps draw their seeds; so does a virtio-rng, and a TLS connection.
    call(libc::SYS_getrandom),
    // A thread of Rust's begins and ends with its signal stack; glibc registers what the kernel is to look at.
    call(libc::SYS_sigaltstack),
    call(libc::SYS_rt_sigprocmask),
    call(libc::SYS_rt_sigreturn),
    call(libc::SYS_set_robust_list),
    call(libc::SYS_rseq),
    // pthread_getattr_np, for the bounds of the stack.
    call(libc::SYS_sched_getaffinity),
    call(libc::SYS_sched_yield),
    // A wait that SIGSTOP and SIGCONT have interrupted.
    call(libc::SYS_restart_syscall),
    // A kick of a vCPU, and abort: signals to this process alone.
    Call {
        number: libc::SYS_tgkill,
        only: Only::OwnProcess,
    },
    call(libc::SYS_exit),
    call(libc::SYS_exit_group),
];

/// The flags of clone(2) that make a thread; a process has neither.
const THREAD: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).cast_unsigned();
/// And those that it must not have: namespaces, and a trace.
const NO_THREAD: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK)
    .cast_unsigned();

/// Whoever starts threads: the thread itself, its name, and its filter.
const THREADS: Group = &[
    with(libc::SYS_clone, 0, THREAD | NO_THREAD, THREAD),
    equal(libc::SYS_prctl, 0, libc::PR_SET_NAME),
    equal(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS),
    with(
        libc::SYS_seccomp,
        0,
        u32::MAX,
        libc::SECCOMP_SET_MODE_FILTER,
    ),
];

/// The event loops of the main thread and of virtio devices.
const EVENT_LOOP: Group = &[
    call(libc::SYS_epoll_create1),
    call(libc::SYS_epoll_ctl),
    call(libc::SYS_epoll_wait),
    call(libc::SYS_epoll_pwait),
    call(libc::SYS_timerfd_settime),
];

/// Descriptors by which threads wake each other: eventfds and their duplicates, socket pairs.
const WAKE_UPS: Group = &[
    call(libc::SYS_eventfd2),
    equal(libc::SYS_socketpair, 0, libc::AF_UNIX),
    equal(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
    ioctl(FIONBIO),
];

/// A device's interrupt: a line, or a message.
const LINE: Group = &[ioctl(KVM_IRQ_LINE), ioctl(KVM_SIGNAL_MSI)];

/// The first vCPU of a process installs the handler of the kick.
const KICK: Group = &[call(libc::SYS_rt_sigaction)];

/// The end of the process: its terminal as it was.
const FAREWELL: Group = &[ioctl(TCGETS), ioctl(TCSETS)];

/// A vCPU runs.
const RUN: Group = &[ioctl(KVM_RUN), ioctl(KVM_KVMCLOCK_CTRL)];

/// A vCPU's state is read and written by its own thread.
const VCPU_STATE: Group = &[
    ioctl(KVM_GET_REGS),
    ioctl(KVM_SET_REGS),
    ioctl(KVM_GET_SREGS),
    ioctl(KVM_SET_SREGS),
    ioctl(KVM_GET_MSRS),
    ioctl(KVM_SET_MSRS),
    ioctl(KVM_GET_LAPIC),
    ioctl(KVM_SET_LAPIC),
    ioctl(KVM_GET_MP_STATE),
    ioctl(KVM_SET_MP_STATE),
    ioctl(KVM_GET_VCPU_EVENTS),
    ioctl(KVM_SET_VCPU_EVENTS),
    ioctl(KVM_GET_DEBUGREGS),
    ioctl(KVM_SET_DEBUGREGS),
    ioctl(KVM_GET_TSC_KHZ),
    ioctl(KVM_SET_TSC_KHZ),
    ioctl(KVM_GET_XSAVE),
    ioctl(KVM_GET_XSAVE2),
    ioctl(KVM_SET_XSAVE),
    ioctl(KVM_GET_XCRS),
    ioctl(KVM_SET_XCRS),
];

/// The timer that kicks a throttled vCPU.
const THROTTLE: Group = &[
    call(libc::SYS_timer_create),
    call(libc::SYS_timer_settime),
    call(libc::SYS_timer_delete),
];

/// Dirty rings are emptied; where one has overflowed memory is protected anew by its slots' flag.
const RING: Group = &[
    ioctl(KVM_RESET_DIRTY_RINGS),
    ioctl(KVM_SET_USER_MEMORY_REGION),
];

/// A range of the dirty log is armed before it is sent, and looked at once more when it is its turn.
const ARM: Group = &[
    ioctl(KVM_CLEAR_DIRTY_LOG),
    ioctl(KVM_RESET_DIRTY_RINGS),
    ioctl(KVM_GET_DIRTY_LOG),
];

/// Holes in memory of a file are found, and not read, before it is sent.
const HOLES: Group = &[call(libc::SYS_mincore), call(libc::SYS_lseek)];

/// Memory that is filled as it is touched, out of files that are open.
const FAULTS: Group = &[
    ioctl(UFFDIO_REGISTER),
    ioctl(UFFDIO_UNREGISTER),
    ioctl(UFFDIO_WAKE),
    ioctl(UFFDIO_COPY),
    ioctl(UFFDIO_ZEROPAGE),
    call(libc::SYS_pread64),
    call(libc::SYS_fstat),
    call(libc::SYS_statx),
    equal(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
];

/// The dirty log: on (with manual protection), read, armed, off.
const DIRTY_LOG: Group = &[
    ioctl(KVM_ENABLE_CAP),
    ioctl(KVM_SET_USER_MEMORY_REGION),
    ioctl(KVM_GET_DIRTY_LOG),
    ioctl(KVM_CLEAR_DIRTY_LOG),
    ioctl(KVM_RESET_DIRTY_RINGS),
];

/// A driver chooses offloads, by its features or by the control queue; a device that goes on after a pause has its own.
const CARD: Group = &[ioctl(TUNSETOFFLOAD)];

/// A driver says how many queue pairs it uses, and by a reset that it uses one: the tap's queues are attached or
/// detached.
const CARD_QUEUES: Group = &[ioctl(TUNSETQUEUE)];

/// A disk: data to and from guest memory, or over a buffer, flushes, holes and zeros.
const DISK: Group = &[
    call(libc::SYS_preadv),
    call(libc::SYS_pwritev),
    call(libc::SYS_pread64),
    call(libc::SYS_pwrite64),
    call(libc::SYS_fdatasync),
    call(libc::SYS_fallocate),
];

/// Pages in a balloon go back to the host: of a memfd by this, of anonymous memory as everyone's.
const RELEASE: Group = &[equal(libc::SYS_madvise, 2, libc::MADV_REMOVE)];

/// The locks of disks are passed on in a move, and taken before a guest goes on.
const FENCE: Group = &[equal(libc::SYS_fcntl, 1, libc::F_OFD_SETLK)];

/// What a guest that leaves has written goes to its disks.
const WRITE_OUT: Group = &[call(libc::SYS_fdatasync)];

/// What this host has cached of the disks of a guest that arrives is forgotten.
const FORGET: Group = &[call(libc::SYS_fadvise64)];

/// A tap that was opened before is made ready for a guest.
const CARD_SETUP: Group = &[
    ioctl(TUNGETIFF),
    ioctl(TUNSETVNETHDRSZ),
    ioctl(TUNSETOFFLOAD),
    ioctl(TUNSETQUEUE),
    equal(libc::SYS_fcntl, 1, libc::F_SETFL),
];

/// Connections that are there, of a move or of the control socket: what streams, TLS and HTTP do on them.
const CONNECTIONS: Group = &[
    call(libc::SYS_recvmsg),
    call(libc::SYS_sendmsg),
    call(libc::SYS_setsockopt),
    call(libc::SYS_getsockopt),
    call(libc::SYS_getsockname),
    call(libc::SYS_getpeername),
    call(libc::SYS_shutdown),
    ioctl(FIONBIO),
    equal(libc::SYS_fcntl, 1, libc::F_GETFL),
    equal(libc::SYS_fcntl, 1, libc::F_SETFL),
    equal(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
    // Whether a peer of the control socket is this user.
    call(libc::SYS_geteuid),
];

/// How much memory the process takes, for metrics: a file of /proc that is open.
const FOOTPRINT: Group = &[call(libc::SYS_pread64)];
/// A snapshot's file, which came with a request: what was written has to last.
const KEEP: Group = &[call(libc::SYS_fdatasync)];

/// A file that comes with a request of the control socket is looked at.
const PASSED: Group = &[call(libc::SYS_statx)];

/// Guest memory is lent to a connection's socket, through a pipe.
const LEND: Group = &[
    call(libc::SYS_pipe2),
    equal(libc::SYS_fcntl, 1, libc::F_SETPIPE_SZ),
    call(libc::SYS_vmsplice),
    call(libc::SYS_splice),
];

/// Over loopback both ends of a stream run on one processor.
const PLACEMENT: Group = &[call(libc::SYS_sched_setaffinity), call(libc::SYS_getcpu)];

/// How a card's thread is scheduled, which it changes its mind about; neither is a privilege.
const TURNS: Group = &[
    equal(libc::SYS_sched_setscheduler, 1, libc::SCHED_BATCH),
    equal(libc::SYS_sched_setscheduler, 1, libc::SCHED_OTHER),
];

/// New connections outwards: TCP, and Unix sockets of this host.
const FURTHER: Group = &[
    equal(libc::SYS_socket, 0, libc::AF_INET),
    equal(libc::SYS_socket, 0, libc::AF_INET6),
    equal(libc::SYS_socket, 0, libc::AF_UNIX),
    call(libc::SYS_connect),
    equal(libc::SYS_fcntl, 1, libc::F_SETFD),
];

/// Connections that come in where one listens already; a Unix socket's file goes with it.
const LISTEN: Group = &[
    call(libc::SYS_accept4),
    call(libc::SYS_statx),
    call(libc::SYS_unlink),
];

/// The descriptors of a memfd guest: checked, and mapped.
const DESCRIPTORS: Group = &[
    equal(libc::SYS_fcntl, 1, libc::F_GET_SEALS),
    call(libc::SYS_fstat),
    call(libc::SYS_statx),
];

/// Which pages were ever touched: the page map, opened beforehand, and the holes of a memfd. Also other files of /proc
/// that are open: how much memory there is.
const PAGES: Group = &[
    ioctl(PAGEMAP_SCAN),
    call(libc::SYS_pread64),
    call(libc::SYS_lseek),
];

/// The state of a VM that belongs to no vCPU.
const VM_STATE: Group = &[
    ioctl(KVM_GET_IRQCHIP),
    ioctl(KVM_GET_PIT2),
    ioctl(KVM_GET_CLOCK),
];

/// A VM for the guest that comes, and its state.
const MAKE_VM: Group = &[
    ioctl(KVM_CREATE_VM),
    ioctl(KVM_CHECK_EXTENSION),
    ioctl(KVM_GET_VCPU_MMAP_SIZE),
    ioctl(KVM_GET_SUPPORTED_CPUID),
    ioctl(KVM_GET_MSR_INDEX_LIST),
    ioctl(KVM_SET_TSS_ADDR),
    ioctl(KVM_SET_IDENTITY_MAP_ADDR),
    ioctl(KVM_ENABLE_CAP),
    ioctl(KVM_SET_USER_MEMORY_REGION),
    ioctl(KVM_CREATE_IRQCHIP),
    ioctl(KVM_CREATE_PIT2),
    ioctl(KVM_CREATE_VCPU),
    ioctl(KVM_SET_CPUID2),
    ioctl(KVM_GET_MSRS),
    ioctl(KVM_GET_TSC_KHZ),
    ioctl(KVM_IOEVENTFD),
    ioctl(KVM_SET_IRQCHIP),
    ioctl(KVM_SET_PIT2),
    ioctl(KVM_SET_CLOCK),
];

/// How much memory the host has: before a guest's is made, and before a probe takes some.
const ROOM: Group = &[call(libc::SYS_sysinfo)];

/// Memory in huge pages: a guest's, and what a probe of the link fills as if it were one's.
const HUGE: Group = &[equal(libc::SYS_madvise, 2, libc::MADV_HUGEPAGE)];

/// Memory that is there before the guest.
const PREFAULT: Group = &[equal(libc::SYS_madvise, 2, libc::MADV_POPULATE_WRITE)];

/// What getaddrinfo(3) does: its files (Landlock says which), name servers, and which addresses this host has.
const RESOLVER: Group = &[
    call(libc::SYS_openat),
    call(libc::SYS_newfstatat),
    call(libc::SYS_fstat),
    call(libc::SYS_lseek),
    call(libc::SYS_access),
    equal(libc::SYS_socket, 0, libc::AF_NETLINK),
    call(libc::SYS_bind),
    call(libc::SYS_sendmsg),
    call(libc::SYS_sendmmsg),
    call(libc::SYS_recvmsg),
    call(libc::SYS_setsockopt),
    call(libc::SYS_getsockopt),
    call(libc::SYS_getsockname),
    call(libc::SYS_uname),
    call(libc::SYS_getuid),
    call(libc::SYS_geteuid),
    ioctl(FIONREAD),
    equal(libc::SYS_fcntl, 1, libc::F_GETFL),
    equal(libc::SYS_fcntl, 1, libc::F_SETFL),
];
