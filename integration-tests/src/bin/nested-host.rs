//! `nested-host`: run commands in a host with a working `/dev/kvm`, on a machine that has none.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use integration_tests::nested::{self, Host, Options, Place, Stream};
use integration_tests::{Error, chain};

/// Runs commands in a host with a working /dev/kvm, on any machine: QEMU's TCG emulates a processor with
/// virtualization, a Debian kernel in it brings its KVM. Needs neither root nor /dev/kvm.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// Says in one line where Linux guests run on this machine, natively or in a nested host, and why
    Check {
        /// Where that is a nested host, also download what it is made of
        #[arg(long)]
        fetch: bool,
    },
    /// Runs a command in a nested host and ends with its status
    Run(Run),
    /// Downloads what a nested host is made of: its kernel into the cache, and QEMU of Debian's backports beside the
    /// build
    Fetch {
        /// Folder that keeps kernels
        #[arg(long, value_name = "DIR", default_value_os_t = nested::default_cache())]
        cache: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// The command and its arguments; programs, libraries and folders are those of this machine
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
    /// Folder whose files can be changed from inside; changes elsewhere are lost at the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    share: PathBuf,
    /// Run it here if Linux guests run here
    #[arg(long)]
    prefer_native: bool,
    /// Processor that is emulated, in QEMU's words
    #[arg(long, value_name = "MODEL", default_value = Options::CPU)]
    cpu: String,
    /// Processors of the nested host. More than one is slower, and QEMU's TCG then loses a guest now and then
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Its memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// Write what the nested kernel prints into this file
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// End it after so many seconds, whatever happens
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Folder that keeps kernels
    #[arg(long, value_name = "DIR", default_value_os_t = nested::default_cache())]
    cache: PathBuf,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        nested::inside::main();
    }
    match Cli::parse().act {
        Act::Check { fetch } => {
            let place = Place::choose();
            println!("{place}");
            match place {
                Place::Nested(_) if fetch => finish(get(&nested::default_cache())),
                _ => ExitCode::SUCCESS,
            }
        }
        Act::Run(run) => finish(run.go()),
        Act::Fetch { cache } => finish(get(&cache)),
    }
}

/// What a nested host is made of. One with another QEMU is slower, but serves.
fn get(cache: &Path) -> Result<i32, Error> {
    if let Some(why) = nested::fetch(cache)? {
        eprintln!(
            "nested-host: the installed QEMU serves, as backports cannot be had: {}",
            chain(&why)
        );
    }
    Ok(0)
}

/// 125 stands for "the runner itself failed", as with `timeout` or `docker run`.
fn finish(result: Result<i32, Error>) -> ExitCode {
    let status = result.unwrap_or_else(|error| {
        eprintln!("nested-host: {}", chain(&error));
        125
    });
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

impl Run {
    fn go(self) -> Result<i32, Error> {
        let place = Place::choose();
        if self.prefer_native && matches!(place, Place::Native(_)) {
            eprintln!("nested-host: {place}");
            return run_here(&self.command);
        }
        let command = nested::command_like_ours(self.command)
            .map_err(|e| Error::file("find", "(the current folder)".as_ref(), e))?;
        let start = Instant::now();
        let init = std::env::current_exe().map_err(|e| Error::file("find", "(us)".as_ref(), e))?;
        let usual = Options::new(init);
        let mut host = Host::boot(&Options {
            cache: self.cache,
            share: Some(self.share),
            cpu: self.cpu,
            cpus: self.cpus,
            memory_mib: self.memory,
            console: self.console,
            timeout: Duration::from_secs(self.timeout),
            ..usual
        })?;
        let kvm = match &host.ready().kvm {
            Ok(version) => format!("/dev/kvm answers API {version}"),
            Err(why) => format!("no KVM: {why}"),
        };
        eprintln!(
            "nested-host: Linux {} up in {:.1} s, {kvm}",
            host.ready().kernel,
            start.elapsed().as_secs_f64()
        );
        let ended = host.run(&command, |stream, bytes| {
            let _ = match stream {
                Stream::Stdout => write_through(&mut io::stdout(), bytes),
                Stream::Stderr => write_through(&mut io::stderr(), bytes),
            };
        })?;
        Ok(ended.status())
    }
}

fn write_through(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn run_here(command: &[String]) -> Result<i32, Error> {
    use std::os::unix::process::ExitStatusExt;
    let program = command.first().map(String::as_str).unwrap_or_default();
    let status = std::process::Command::new(program)
        .args(command.iter().skip(1))
        .status()
        .map_err(|e| Error::file("run", program.as_ref(), e))?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
