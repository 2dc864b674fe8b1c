//! Each kind's filter, put on a process of its own that then tries what it may and what it may not.
#![allow(unsafe_code, reason = "fork, and system calls by number")]

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::calls::{Kind, Only};
use super::filter::Filters;
use super::*;

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// It came back, with this error or none.
    Returned(i32),
    Killed(Signal),
}

/// Makes the call in a process that has the filters, in their order; all of what is passed is invalid or harmless.
fn attempt(filters: &[&Filters], call: [i64; 7]) -> Ended {
    let [number, a, b, c, d, e, f] = call;
    // SAFETY: the child does nothing but system calls (the filters are compiled) and _exit: no lock that another
    // thread of this process may have held is taken.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            if filters.iter().any(|filters| filters.apply().is_err()) {
                // SAFETY: ends this process, which has nothing to clean up.
                unsafe { libc::_exit(255) };
            }
            // SAFETY: every call in the tables below has arguments that the kernel refuses, or that change only this
            // process, which ends now.
            let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
            let errno = match result {
                -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
                _ => 0,
            };
            // SAFETY: as above.
            unsafe { libc::_exit(errno) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, 255) => panic!("the filters are refused"),
            WaitStatus::Exited(_, errno) => Ended::Returned(errno),
            WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal),
            other => panic!("{other:?}"),
        },
    }
}

/// A call with at most three arguments.
fn call(number: i64, a: i64, b: i64, c: i64) -> [i64; 7] {
    [number, a, b, c, 0, 0, 0]
}

fn ioctl(request: u64) -> [i64; 7] {
    call(libc::SYS_ioctl, -1, request.cast_signed(), 0)
}

fn mmap(protection: i32) -> [i64; 7] {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let (protection, flags) = (i64::from(protection), i64::from(flags));
    [libc::SYS_mmap, 0, 4096, protection, flags, -1, 0]
}

/// Those that look up names, or start threads that do.
const RESOLVING: &[Kind] = &[Kind::Main, Kind::Source, Kind::Dial, Kind::Resolve];

/// What is nobody's business, or only that of some.
fn forbidden() -> Vec<(&'static str, [i64; 7], &'static [Kind])> {
    let socket = |family: i32| call(libc::SYS_socket, family.into(), libc::SOCK_STREAM.into(), 0);
    let clone = |flags: i32| call(libc::SYS_clone, flags.into(), 0, 0);
    let init = 1;
    vec![
        // Fails: by the filter, or by Landlock for those that look up names.
        ("openat", call(libc::SYS_openat, -1, 0, 0), &Kind::ALL),
        ("open", call(libc::SYS_open, 0, 0, 0), &[]),
        ("execve", call(libc::SYS_execve, 0, 0, 0), &[]),
        ("execveat", call(libc::SYS_execveat, -1, 0, 0), &[]),
        ("ptrace", call(libc::SYS_ptrace, 99, 0, 0), &[]),
        ("fork", call(libc::SYS_fork, 0, 0, 0), &[]),
        ("a process by clone", clone(libc::SIGCHLD), &[]),
        (
            "a thread in another namespace",
            clone(libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_NEWNET),
            &[],
        ),
        (
            "unshare",
            call(libc::SYS_unshare, libc::CLONE_NEWUSER.into(), 0, 0),
            &[],
        ),
        ("kill of another", call(libc::SYS_kill, init, 0, 0), &[]),
        (
            "tgkill of another",
            call(libc::SYS_tgkill, init, init, 0),
            &[],
        ),
        (
            "process_vm_writev",
            call(libc::SYS_process_vm_writev, init, 0, 0),
            &[],
        ),
        ("setuid", call(libc::SYS_setuid, 0, 0, 0), &[]),
        ("capset", call(libc::SYS_capset, 0, 0, 0), &[]),
        ("mount", call(libc::SYS_mount, 0, 0, 0), &[]),
        ("bpf", call(libc::SYS_bpf, -1, 0, 0), &[]),
        (
            "io_uring_setup",
            call(libc::SYS_io_uring_setup, 0, 0, 0),
            &[],
        ),
        ("userfaultfd", call(libc::SYS_userfaultfd, -1, 0, 0), &[]),
        ("TCP", socket(libc::AF_INET), RESOLVING),
        ("raw packets", socket(libc::AF_PACKET), &[]),
        ("vsock", socket(libc::AF_VSOCK), &[]),
        ("listen", call(libc::SYS_listen, -1, 0, 0), &[]),
        (
            "a new VM",
            ioctl(super::ioctls::KVM_CREATE_VM),
            &[Kind::Receiver],
        ),
        (
            "a vCPU that runs",
            ioctl(super::ioctls::KVM_RUN),
            &[Kind::Vcpu, Kind::Receiver],
        ),
        ("another tap", ioctl(libc::TUNSETIFF), &[]),
        (
            "another queue of the tap",
            ioctl(libc::TUNSETQUEUE),
            &[Kind::Vcpu, Kind::Virtio, Kind::Receiver],
        ),
        ("typing into the terminal", ioctl(libc::TIOCSTI), &[]),
        (
            "prctl(PR_SET_DUMPABLE)",
            call(libc::SYS_prctl, libc::PR_SET_DUMPABLE.into(), 0, 0),
            &[],
        ),
    ]
}

#[test]
fn what_a_thread_may_not_do_kills_the_process() {
    for kind in Kind::ALL {
        let filters = Filters::of(kind, Mode::Kill).unwrap();
        for (what, call, allowed) in forbidden() {
            let ended = attempt(&[&filters], call);
            if allowed.contains(&kind) {
                assert!(
                    matches!(ended, Ended::Returned(_)),
                    "{kind:?}: {what}: {ended:?}"
                );
            } else {
                assert_eq!(ended, Ended::Killed(Signal::SIGSYS), "{kind:?}: {what}");
            }
        }
    }
}

#[test]
fn memory_is_never_made_executable_and_no_process_is_made() {
    for kind in Kind::ALL {
        let filters = Filters::of(kind, Mode::Kill).unwrap();
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(
            attempt(&[&filters], mmap(writable)),
            Ended::Returned(0),
            "{kind:?}"
        );
        // A resolver's C library tries to load modules, and goes on.
        let refused = match RESOLVING.contains(&kind) {
            true => Ended::Returned(libc::EPERM),
            false => Ended::Killed(Signal::SIGSYS),
        };
        let executable = mmap(writable | libc::PROT_EXEC);
        assert_eq!(attempt(&[&filters], executable), refused, "{kind:?}");
        let protect = call(libc::SYS_mprotect, 0, 4096, libc::PROT_EXEC.into());
        assert_eq!(
            attempt(&[&filters], protect),
            Ended::Killed(Signal::SIGSYS),
            "{kind:?}"
        );
        // clone3 hides its flags: where threads are started it seems not to be there.
        let refused = match kind.starts() {
            [] => Ended::Killed(Signal::SIGSYS),
            _ => Ended::Returned(libc::ENOSYS),
        };
        assert_eq!(
            attempt(&[&filters], call(libc::SYS_clone3, 0, 0, 0)),
            refused,
            "{kind:?}"
        );
    }
}

/// Everything in the table passes the filter that is made of it, and that of everyone whom the thread comes from: a
/// thread has those filters, too.
#[test]
fn what_a_thread_may_do_passes_all_filters_that_it_has() {
    let all: Vec<_> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, Filters::of(kind, Mode::Kill).unwrap()))
        .collect();
    let of = |kind: Kind| &all.iter().find(|(other, _)| *other == kind).unwrap().1;
    let mut lines: Vec<Vec<Kind>> = Kind::ALL.into_iter().map(|kind| vec![kind]).collect();
    let mut done = 0;
    while let Some(line) = lines.get(done).cloned() {
        done += 1;
        let last = *line.last().unwrap();
        let further = last
            .starts()
            .iter()
            .map(|&next| [&line[..], &[next]].concat());
        lines.extend(further);
    }
    assert!(lines.contains(&vec![Kind::Main, Kind::Source, Kind::Dial, Kind::Resolve]));
    for line in lines
        .iter()
        .filter(|line| line.len() > 1 || line[0].starts().is_empty())
    {
        let filters: Vec<&Filters> = line.iter().map(|&kind| of(kind)).collect();
        let last = *line.last().unwrap();
        for allowed in last.calls() {
            // Ends the process, waits, or needs a frame of a signal to return to.
            if matches!(
                allowed.number,
                libc::SYS_exit
                    | libc::SYS_exit_group
                    | libc::SYS_rt_sigreturn
                    | libc::SYS_restart_syscall
                    | libc::SYS_clone
                    | libc::SYS_ppoll
            ) {
                continue;
            }
            let mut call = [allowed.number, -1, -1, -1, -1, -1, -1];
            match allowed.only {
                Only::Any => {}
                Only::Masked { index, value, .. } => call[usize::from(index) + 1] = value.into(),
                Only::OwnProcess => continue,
            }
            let ended = attempt(&filters, call);
            assert!(
                matches!(ended, Ended::Returned(_)),
                "{line:?}: {allowed:?}: {ended:?}"
            );
        }
    }
}

#[test]
fn a_forbidden_call_can_be_logged_instead() {
    let filters = Filters::of(Kind::Vcpu, Mode::Log).unwrap();
    let ended = attempt(&[&filters], call(libc::SYS_execve, 0, 0, 0));
    assert_eq!(ended, Ended::Returned(libc::EFAULT));
}

#[test]
fn rights_are_told_by_abi() {
    assert_eq!(landlock_rights(0), "nothing");
    assert_eq!(landlock_rights(3), "files");
    assert_eq!(
        landlock_rights(7),
        "files, TCP ports, ioctls of devices, signals and abstract sockets of others"
    );
}

#[test]
fn modes_are_read_as_they_are_shown() {
    for mode in [Mode::Kill, Mode::Log, Mode::Off] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    assert!("on".parse::<Mode>().is_err());
}

/// In a thread that ends: what it gives up is its own.
fn confined<T: Send>(reach: &Reach, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            capabilities::give_up().unwrap();
            assert!(
                paths::confine(reach).unwrap() >= 1,
                "this kernel has no Landlock"
            );
            act()
        });
        thread.join().unwrap()
    })
}

/// The error of an attempt, if it is one of the system's.
fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn files_are_out_of_reach_but_for_those_that_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let [image, socket, other] = ["image", "socket", "other"].map(|name| folder.path().join(name));
    let beside = tempfile::NamedTempFile::new().unwrap();
    for path in [&image, &socket, &other] {
        std::fs::write(path, "x").unwrap();
    }
    let reach = Reach {
        removes: vec![socket.clone()],
        connects: true,
    };
    confined(&reach, || {
        assert_eq!(errno(std::fs::read(&image)), Some(libc::EACCES));
        for path in [
            "/etc/passwd",
            "/dev/kvm",
            "/proc/self/mem",
            "/proc/1/environ",
        ] {
            assert_eq!(
                errno(std::fs::File::open(path)),
                Some(libc::EACCES),
                "{path}"
            );
        }
        assert_eq!(errno(std::fs::File::open(&other)), Some(libc::EACCES));
        assert_eq!(errno(std::fs::File::create(&image)), Some(libc::EACCES));
        assert_eq!(
            errno(std::fs::write(folder.path().join("new"), "")),
            Some(libc::EACCES)
        );
        assert_eq!(errno(std::fs::read_dir("/")), Some(libc::EACCES));
        assert_eq!(
            errno(std::fs::remove_file(beside.path())),
            Some(libc::EACCES)
        );
        std::fs::remove_file(&socket).unwrap();
        // A host's name can still be looked up.
        assert!(std::fs::read("/etc/hosts").is_ok());
    });
    assert!(!socket.exists() && other.exists() && beside.path().exists());
}

#[test]
fn only_a_guest_that_can_be_moved_connects_and_none_binds() {
    if landlock_abi() < 4 {
        panic!(
            "this kernel's Landlock has ABI {}, TCP ports come with 4",
            landlock_abi()
        );
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for connects in [true, false] {
        let reach = Reach {
            connects,
            ..Reach::default()
        };
        confined(&reach, || {
            let refused = (!connects).then_some(libc::EACCES);
            assert_eq!(errno(std::net::TcpStream::connect(address)), refused);
            assert_eq!(
                errno(std::net::TcpListener::bind("127.0.0.1:0")),
                Some(libc::EACCES)
            );
            assert_eq!(std::fs::read("/etc/hosts").is_ok(), connects);
        });
    }
}

#[test]
fn other_processes_are_out_of_reach() {
    let mut other = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(other.id()).unwrap());
    confined(&Reach::default(), || {
        assert_eq!(
            nix::sys::signal::kill(pid, Signal::SIGTERM),
            Err(nix::Error::EPERM)
        );
    });
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn no_capability_is_kept() {
    confined(&Reach::default(), || ());
    let text = std::thread::spawn(|| {
        // Opened before: afterwards it is out of reach.
        let file = std::fs::File::open("/proc/thread-self/status").unwrap();
        capabilities::give_up().unwrap();
        std::io::read_to_string(file).unwrap()
    });
    let text = text.join().unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            text.contains(&format!("{set}:\t0000000000000000\n")),
            "{set}: {text}"
        );
    }
    assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
}
