//! What is found on the host, without an opinion.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, OpenOptions};

use kvm_bindings as kvm;
use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::cli::error::chain;
use crate::kvm::probe::GuestExecution;
use crate::kvm::ring::offer::Offer;
use crate::sandbox;
use crate::ui;
use crate::userfault::UserFaults;

/// The capabilities that are looked at, by KVM's names (Documentation/virt/kvm/api.rst).
const CAPABILITIES: &[(&str, u32)] = &[
    ("user_memory", kvm::KVM_CAP_USER_MEMORY),
    ("irqchip", kvm::KVM_CAP_IRQCHIP),
    ("pit2", kvm::KVM_CAP_PIT2),
    ("ioeventfd", kvm::KVM_CAP_IOEVENTFD),
    ("ext_cpuid", kvm::KVM_CAP_EXT_CPUID),
    ("adjust_clock", kvm::KVM_CAP_ADJUST_CLOCK),
    ("immediate_exit", kvm::KVM_CAP_IMMEDIATE_EXIT),
    ("tsc_deadline_timer", kvm::KVM_CAP_TSC_DEADLINE_TIMER),
    (
        "manual_dirty_log_protect2",
        kvm::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    ),
    ("dirty_log_ring", kvm::KVM_CAP_DIRTY_LOG_RING),
    (
        "dirty_log_ring_acq_rel",
        kvm::KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    ),
    ("tsc_control", kvm::KVM_CAP_TSC_CONTROL),
    ("xsave2", kvm::KVM_CAP_XSAVE2),
    ("nr_memslots", kvm::KVM_CAP_NR_MEMSLOTS),
    ("max_vcpus", kvm::KVM_CAP_MAX_VCPUS),
];

/// Everything found. The field names are those of `ferry check --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Facts {
    pub(super) kvm: KvmFacts,
    pub(super) guest_execution: Execution,
    /// KVM_GET_DIRTY_LOG; every KVM has it.
    pub(super) dirty_log: bool,
    pub(super) manual_protect: bool,
    /// The most entries a vCPU; 0 if there is no ring.
    pub(super) dirty_ring_entries: u32,
    pub(super) irqchip: bool,
    pub(super) tsc_deadline: bool,
    pub(super) tap: Device,
    pub(super) userfaultfd: Device,
    pub(super) sandbox: Sandbox,
    pub(super) memory_total_bytes: u64,
    pub(super) memory_available_bytes: u64,
    pub(super) cpus: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct KvmFacts {
    pub(super) present: bool,
    pub(super) allowed: bool,
    pub(super) api_version: Option<i32>,
    pub(super) capabilities: BTreeMap<&'static str, i32>,
    /// Why Ferry cannot use it, with what to do.
    pub(super) error: Option<String>,
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Native,
    Emulated,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Execution {
    pub(super) kind: Kind,
    pub(super) instructions_per_s: Option<u64>,
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Device {
    pub(super) usable: bool,
    pub(super) error: Option<String>,
}

/// What a process with a guest can give up here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sandbox {
    /// The kernel can kill for a system call.
    pub(super) system_calls: bool,
    /// 0 for a kernel without Landlock.
    pub(super) landlock_abi: u32,
}

impl Device {
    fn from<T>(opened: Result<T, std::io::Error>) -> Self {
        Self {
            usable: opened.is_ok(),
            error: opened.err().map(|error| error.to_string()),
        }
    }
}

/// Looks at everything. `measure` runs a tiny guest for a few milliseconds; it is not asked when there is no KVM.
pub(super) fn gather(
    measure: impl FnOnce() -> Result<GuestExecution, Box<dyn Error + Send + Sync>>,
) -> Facts {
    let kvm = look_at_kvm();
    let guest_execution = match kvm.error {
        Some(_) => Execution::unknown(None),
        None => match measure() {
            Ok(found) => Execution {
                kind: if found.native {
                    Kind::Native
                } else {
                    Kind::Emulated
                },
                instructions_per_s: Some(found.instructions_per_s),
                error: None,
            },
            Err(error) => Execution::unknown(Some(chain(error.as_ref()))),
        },
    };
    let has = |name: &str| kvm.capabilities.get(name).copied().unwrap_or(0);
    let offer = Offer::find(|capability| {
        let found = CAPABILITIES
            .iter()
            .find(|(_, number)| *number == capability);
        found.map_or(0, |(name, _)| has(name))
    });
    let dirty_ring_entries = offer.map_or(0, |offer| offer.entries);
    let (memory_total_bytes, memory_available_bytes) = memory();
    Facts {
        guest_execution,
        dirty_log: kvm.allowed,
        manual_protect: has("manual_dirty_log_protect2") & 1 == 1,
        dirty_ring_entries,
        irqchip: has("irqchip") > 0,
        tsc_deadline: has("tsc_deadline_timer") > 0,
        tap: Device::from(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun"),
        ),
        userfaultfd: Device::from(UserFaults::new()),
        sandbox: Sandbox {
            system_calls: sandbox::has_filters(),
            landlock_abi: sandbox::landlock_abi(),
        },
        memory_total_bytes,
        memory_available_bytes,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        kvm,
    }
}

fn look_at_kvm() -> KvmFacts {
    let present = fs::exists("/dev/kvm").unwrap_or(false);
    let mut facts = KvmFacts {
        present,
        // The VMM's own test, so that its advice is given here as well.
        error: crate::kvm::open().err().map(|error| chain(&error)),
        ..KvmFacts::default()
    };
    if let Ok(kvm) = Kvm::new() {
        facts.allowed = true;
        facts.api_version = Some(kvm.get_api_version());
        facts.capabilities = CAPABILITIES
            .iter()
            .map(|(name, number)| (*name, kvm.check_extension_raw(u64::from(*number))))
            .collect();
    }
    facts
}

/// Total and available, from proc_meminfo(5); 0 where it does not say.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:"))
}

pub(super) fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib.saturating_mul(1024))
}

impl Execution {
    fn unknown(error: Option<String>) -> Self {
        Self {
            kind: Kind::Unknown,
            instructions_per_s: None,
            error,
        }
    }

    fn text(&self) -> String {
        let rate = self.instructions_per_s.map_or(String::new(), |rate| {
            format!(", {} instructions/s", ui::count(rate / 1000 * 1000))
        });
        let error = self
            .error
            .as_ref()
            .map_or(String::new(), |error| format!(": {error}"));
        match self.kind {
            Kind::Native => format!("native{rate}"),
            Kind::Emulated => format!("emulated by KVM{rate}"),
            Kind::Unknown => format!("unknown{error}"),
        }
    }
}

impl Sandbox {
    fn text(self) -> String {
        let calls = match self.system_calls {
            true => "yes: no capability is kept, forbidden system calls kill",
            false => "no: this kernel does not filter system calls (run with --sandbox off)",
        };
        match (self.system_calls, self.landlock_abi) {
            (false, _) => calls.to_owned(),
            (true, 0) => format!("{calls}; no Landlock in this kernel, so files stay in reach"),
            (true, abi) => {
                let rights = sandbox::landlock_rights(abi);
                format!("{calls}; Landlock ABI {abi} takes {rights}")
            }
        }
    }
}

impl Facts {
    /// A name and a value each.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let device = |device: &Device| match &device.error {
            None => "yes".to_owned(),
            Some(error) => format!("no: {error}"),
        };
        let kvm = match (&self.kvm.error, self.kvm.api_version) {
            (Some(error), _) => error.clone(),
            (None, Some(version)) => format!("yes, API version {version}"),
            (None, None) => "yes".to_owned(),
        };
        let ring = match self.dirty_ring_entries {
            0 => "no".to_owned(),
            entries => format!(
                "yes, up to {} entries a vCPU (--dirty-tracking ring)",
                ui::count(u64::from(entries))
            ),
        };
        let memory = format!(
            "{}, {} available",
            ui::bytes(self.memory_total_bytes),
            ui::bytes(self.memory_available_bytes)
        );
        vec![
            ("KVM", kvm),
            ("guest code", self.guest_execution.text()),
            ("interrupt chips", yes(self.irqchip)),
            ("TSC deadline", yes(self.tsc_deadline)),
            ("dirty log", yes(self.dirty_log)),
            ("  manual protect", yes(self.manual_protect)),
            ("  ring", ring),
            ("tap devices", device(&self.tap)),
            ("userfaultfd", device(&self.userfaultfd)),
            ("sandbox", self.sandbox.text()),
            ("memory", memory),
            ("processors", self.cpus.to_string()),
        ]
    }
}
