//! The smallest VMM that runs `pulse` on /dev/kvm: enough to test the guest before, and apart from, Ferry.

#![allow(unsafe_code, reason = "handing guest memory to KVM is an unsafe call")]
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_images::{PULSE, pulse::HEARTBEAT_PORT};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::loader::{KernelLoader, elf::Elf, elf::PvhBootCapability};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub type Memory = vm_memory::GuestMemoryMmap<()>;

const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Ports {
    serial: Mutex<Vec<u8>>,
    beat: AtomicU32,
    stop: AtomicBool,
}

/// A running pulse.
pub struct Guest {
    pub memory: Memory,
    ports: Arc<Ports>,
    vcpus: Vec<JoinHandle<VcpuFd>>,
    _vm: VmFd,
}

impl Guest {
    /// Starts pulse with so much memory and that command line.
    pub fn start(mib: u64, cpus: u8, line: &str) -> Self {
        let kvm = Kvm::new().expect("these tests need /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        let memory =
            Memory::from_ranges(&[(GuestAddress(0), usize::try_from(mib << 20).unwrap())]).unwrap();
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region's mapping is owned by `memory`, which the guest holds as long as the VM.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
        }
        let entry = load(&memory, mib << 20, line);
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let ports = Arc::new(Ports::default());
        register_signal_handler(SIGRTMIN(), on_kick).unwrap();
        let vcpus = (0..cpus)
            .map(|index| {
                let vcpu = vm.create_vcpu(index.into()).unwrap();
                vcpu.set_cpuid2(&cpuid).unwrap();
                if index == 0 {
                    enter_flat_mode(&vcpu, entry);
                }
                let ports = ports.clone();
                thread::spawn(move || run(vcpu, &ports))
            })
            .collect();
        Self {
            memory,
            ports,
            vcpus,
            _vm: vm,
        }
    }

    /// The last number at the heartbeat port.
    pub fn beat(&self) -> u32 {
        self.ports.beat.load(Ordering::Acquire)
    }

    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&self.ports.serial.lock().unwrap()).into_owned()
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "no {what}; serial: {}",
                self.serial()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops all vCPUs where they are and gives the memory back.
    pub fn stop(self) -> Stopped {
        self.ports.stop.store(true, Ordering::Release);
        for vcpu in self.vcpus {
            while !vcpu.is_finished() {
                vcpu.kill(SIGRTMIN()).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
            vcpu.join().unwrap();
        }
        Stopped {
            memory: self.memory,
            beat: self.ports.beat.load(Ordering::Acquire),
        }
    }
}

/// A pulse that stands still for good.
pub struct Stopped {
    pub memory: Memory,
    pub beat: u32,
}

impl Stopped {
    /// Overwrites memory, as a VMM that loses a write would.
    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn get(&self, gpa: u64) -> u32 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }
}

pub fn reader(memory: &Memory) -> impl Fn(u64, &mut [u8]) -> std::io::Result<()> + '_ {
    |gpa, into| {
        memory
            .read_slice(into, GuestAddress(gpa))
            .map_err(std::io::Error::other)
    }
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Loads the image, the command line and the start info (xen/include/public/arch-x86/hvm/start_info.h).
fn load(memory: &Memory, bytes: u64, line: &str) -> u64 {
    let loaded = Elf::load(memory, None, &mut Cursor::new(PULSE), None).unwrap();
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        panic!("pulse has no PVH note");
    };
    memory
        .write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))
        .unwrap();
    let words: [u64; 7] = [
        0x1_336e_c578, // magic, version 1
        0,             // flags, modules
        0,             // module list
        COMMAND_LINE,
        0, // RSDP
        MEMORY_MAP,
        1, // entries of the memory map
    ];
    let map: [u64; 3] = [0, bytes, 1];
    for (gpa, words) in [(START_INFO, &words[..]), (MEMORY_MAP, &map[..])] {
        for (index, word) in (0u64..).zip(words) {
            memory
                .write_obj(*word, GuestAddress(gpa + index * 8))
                .unwrap();
        }
    }
    entry.raw_value()
}

/// The state in which PVH enters a guest: 32-bit protected mode, flat segments, no paging.
fn enter_flat_mode(vcpu: &VcpuFd, entry: u64) {
    let mut sregs = vcpu.get_sregs().unwrap();
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = 1;
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    regs.rip = entry;
    regs.rbx = START_INFO;
    regs.rflags = 2;
    vcpu.set_regs(&regs).unwrap();
}

fn run(mut vcpu: VcpuFd, ports: &Ports) -> VcpuFd {
    while !ports.stop.load(Ordering::Acquire) {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x3f8, data)) => {
                ports.serial.lock().unwrap().write_all(data).unwrap();
            }
            Ok(VcpuExit::IoOut(HEARTBEAT_PORT, data)) => {
                let number = u32::from_le_bytes(data.try_into().unwrap());
                ports.beat.store(number, Ordering::Release);
            }
            Ok(VcpuExit::IoOut(..)) => (),
            Ok(VcpuExit::IoIn(0x3fd, data)) => data.fill(0x20),
            Ok(VcpuExit::IoIn(_, data)) => data.fill(0xff),
            Ok(VcpuExit::Intr) => (),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => (),
            other => panic!("a vCPU exits with {other:?}"),
        }
    }
    vcpu
}
