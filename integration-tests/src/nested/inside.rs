//! The init program of the nested host: process 1 inside.
//!
//! It loads the modules, makes the outer machine's files its own (read through 9p, writes go to memory, one
//! folder excepted), and then runs one command after another until the runner is gone.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, chroot};

use super::frames::{ALIVE_PERIOD, Command, Ended, Frame, Ready};
use super::{CONTROL_PORT, POKE_PORT, ROOT_TAG, SHARE_TAG};

/// Runs as process 1. Never returns: when the runner is gone or something fails, the machine powers off.
pub fn main() -> ! {
    if let Err(error) = live() {
        eprintln!("nested-host init: {error}");
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    process::exit(1)
}

fn live() -> Result<(), String> {
    mount_kernel_file_systems(Path::new("/"))?;
    load_modules()?;
    enter_shared_root()?;
    let mut port = open_port(CONTROL_PORT)?;
    let mut pokes = open_port(POKE_PORT)?;
    // Only that they come matters.
    thread::spawn(move || io::copy(&mut pokes, &mut io::sink()));
    let _ = process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    let ready = Frame::Ready(Ready {
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        kvm: kvm_version(),
    });
    say(&mut port, &ready)?;
    let answers = Arc::new(Mutex::new(
        port.try_clone().map_err(|e| format!("port: {e}"))?,
    ));
    thread::spawn({
        let answers = Arc::clone(&answers);
        move || live_audibly(&answers)
    });
    loop {
        match Frame::read(&mut port) {
            Ok(Frame::Run(command)) => {
                let ended = run(&command, &answers);
                say(
                    &mut *answers.lock().map_err(|e| e.to_string())?,
                    &Frame::Ended(ended),
                )?;
            }
            Ok(other) => return Err(format!("the runner sent {other:?}")),
            Err(error) => return Err(format!("the runner is gone: {error}")),
        }
    }
}

/// Until the runner is gone.
fn live_audibly(answers: &Mutex<File>) {
    while answers
        .lock()
        .is_ok_and(|mut port| say(&mut port, &Frame::Alive).is_ok())
    {
        thread::sleep(ALIVE_PERIOD);
    }
}

fn mount_kernel_file_systems(root: &Path) -> Result<(), String> {
    put("proc", &root.join("proc"), "proc", "")?;
    put("sysfs", &root.join("sys"), "sysfs", "")?;
    put("devtmpfs", &root.join("dev"), "devtmpfs", "")
}

/// In the order of their names. Of the two vendors' KVM modules one is bound to fail.
fn load_modules() -> Result<(), String> {
    let mut paths: Vec<PathBuf> = fs::read_dir("/modules")
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| format!("read /modules: {e}"))?;
    paths.sort();
    for path in paths {
        let file = File::open(&path).map_err(|e| format!("open {}: {e}", path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST | Errno::EOPNOTSUPP | Errno::ENODEV) => {}
            Err(error) => return Err(format!("load {}: {error}", path.display())),
        }
    }
    Ok(())
}

/// The outer root read-only below a layer in memory, the shared folder written through at its own path.
fn enter_shared_root() -> Result<(), String> {
    let transport = "trans=virtio,version=9p2000.L,msize=512000";
    // Nobody else's changes to the outer system matter while we run, so its files may be cached freely.
    put(
        ROOT_TAG,
        Path::new("/host"),
        "9p",
        &format!("{transport},cache=loose,ro"),
    )?;
    put("tmpfs", Path::new("/cow"), "tmpfs", "mode=755")?;
    for folder in ["/cow/upper", "/cow/work"] {
        fs::create_dir(folder).map_err(|e| format!("make {folder}: {e}"))?;
    }
    let new = Path::new("/new");
    let layers = "lowerdir=/host,upperdir=/cow/upper,workdir=/cow/work";
    put("overlay", new, "overlay", layers)?;
    mount_kernel_file_systems(new)?;
    fs::create_dir_all("/new/dev/shm").map_err(|e| format!("make /dev/shm: {e}"))?;
    fs::create_dir_all("/new/dev/pts").map_err(|e| format!("make /dev/pts: {e}"))?;
    put("devpts", &new.join("dev/pts"), "devpts", "ptmxmode=666")?;
    for folder in ["dev/shm", "run"] {
        put("tmpfs", &new.join(folder), "tmpfs", "mode=1777")?;
    }
    if let Some(share) = kernel_parameter("nested.share")? {
        let place = new.join(share.trim_start_matches('/'));
        fs::create_dir_all(&place).map_err(|e| format!("make {share}: {e}"))?;
        put(SHARE_TAG, &place, "9p", &format!("{transport},cache=mmap"))?;
    }
    chdir(new).map_err(|e| format!("enter the new root: {e}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| format!("move the new root: {e}"))?;
    chroot(".")
        .and_then(|()| chdir("/"))
        .map_err(|e| format!("change to the new root: {e}"))
}

fn put(source: &str, target: &Path, kind: &str, options: &str) -> Result<(), String> {
    let flags = if options.ends_with(",ro") {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let options = options.trim_end_matches(",ro");
    mount(Some(source), target, Some(kind), flags, Some(options)).map_err(|e| {
        format!(
            "mount {source} ({kind}, \"{options}\") on {}: {e}",
            target.display()
        )
    })
}

fn kernel_parameter(name: &str) -> Result<Option<String>, String> {
    Ok(read("/proc/cmdline")?
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"))
}

/// The virtio-serial port of that name; without udev there is no link by that name in /dev.
fn open_port(port: &str) -> Result<File, String> {
    let ports = Path::new("/sys/class/virtio-ports");
    let entries = fs::read_dir(ports).map_err(|e| format!("read {}: {e}", ports.display()))?;
    for entry in entries.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == port {
            let device = Path::new("/dev").join(entry.file_name());
            return File::options()
                .read(true)
                .write(true)
                .open(&device)
                .map_err(|e| format!("open {}: {e}", device.display()));
        }
    }
    Err(format!("no virtio port is named {port}"))
}

fn kvm_version() -> Result<i32, String> {
    kvm_ioctls::Kvm::new()
        .map(|kvm| kvm.get_api_version())
        .map_err(|e| format!("open /dev/kvm: {e}"))
}

fn say(port: &mut File, frame: &Frame) -> Result<(), String> {
    frame
        .write(port)
        .map_err(|e| format!("write to the runner: {e}"))
}

/// Runs one command to its end, and whatever it left running too: the next command finds a quiet machine.
fn run(command: &Command, answers: &Arc<Mutex<File>>) -> Ended {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Ended::NotStarted;
    };
    let spawned = process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&command.env)
        .current_dir(&command.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let text = format!(
                "nested-host: cannot run {program} in {}: {error}\n",
                command.cwd.display()
            );
            forward(text.as_bytes(), Frame::Stderr, answers);
            return Ended::NotStarted;
        }
    };
    let pumps = [
        child
            .stdout
            .take()
            .map(|out| pump(out, Frame::Stdout, answers)),
        child
            .stderr
            .take()
            .map(|err| pump(err, Frame::Stderr, answers)),
    ];
    let pid = Pid::from_raw(child.id().cast_signed());
    let watchdog = command.limit.map(|limit| watch(pid, limit, answers));
    let ended = reap_until(pid);
    drop(watchdog);
    sweep();
    for pump in pumps.into_iter().flatten() {
        let _ = pump.join();
    }
    ended
}

/// Ends the process if the answer is not dropped within `limit`, and says before what it and all others are at.
fn watch(pid: Pid, limit: Duration, answers: &Arc<Mutex<File>>) -> mpsc::Sender<()> {
    let (stop, stopped) = mpsc::channel();
    let answers = Arc::clone(answers);
    thread::spawn(move || {
        if stopped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let text = format!(
                "\nnested-host: ended after {limit:?}, its limit\n{}",
                doings()
            );
            forward(text.as_bytes(), Frame::Stderr, &answers);
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    stop
}

/// One line a thread of the machine: whose it is, its state, the system call that it is in, and where in the kernel it
/// waits.
fn doings() -> String {
    let mut text = String::new();
    for process in numbered(Path::new("/proc")) {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        // Threads of the kernel have none.
        if arguments.is_empty() {
            continue;
        }
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        text += &format!("{}: {arguments}\n", process.display());
        for thread in numbered(&process.join("task")) {
            let of = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
            let (stat, call, stack) = (of("stat"), of("syscall"), of("stack"));
            let state = stat.rsplit_once(") ").map_or("?", |(_, rest)| &rest[..1]);
            let places: Vec<_> = stack
                .lines()
                .take(3)
                .filter_map(|l| l.split(' ').nth(1))
                .collect();
            text += &format!(
                "  {} {state} {} [{}]\n",
                of("comm").trim(),
                call.trim(),
                places.join(" < ")
            );
        }
    }
    text
}

/// The entries of a folder of /proc that are numbers.
fn numbered(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let numbers =
        entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    numbers.map(|entry| entry.path()).collect()
}

/// Orphans end up with process 1, so every child is waited for, not just the one that counts.
fn reap_until(pid: Pid) -> Ended {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(who, status)) if who == pid => return Ended::Exited(status),
            Ok(WaitStatus::Signaled(who, signal, _)) if who == pid => {
                return Ended::Signaled(signal as i32);
            }
            Err(Errno::ECHILD) => return Ended::NotStarted,
            _ => {}
        }
    }
}

/// Ends every process but this one.
fn sweep() {
    if kill(Pid::from_raw(-1), Signal::SIGKILL).is_ok() {
        while waitpid(None, None::<WaitPidFlag>).is_ok() {}
    }
}

fn pump(
    mut from: impl Read + Send + 'static,
    kind: fn(Vec<u8>) -> Frame,
    answers: &Arc<Mutex<File>>,
) -> thread::JoinHandle<()> {
    let answers = Arc::clone(answers);
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            forward(&buffer[..count], kind, &answers);
        }
    })
}

fn forward(bytes: &[u8], kind: fn(Vec<u8>) -> Frame, answers: &Arc<Mutex<File>>) {
    if let Ok(mut port) = answers.lock() {
        let _ = say(&mut port, &kind(bytes.to_vec()));
    }
}
