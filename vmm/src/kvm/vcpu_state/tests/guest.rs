//! A VM with a vCPU that is filled with all that a guest would miss, and what KVM itself says of it.

use std::ops::Range;

use kvm_bindings::{KVM_MP_STATE_HALTED, Msrs, kvm_dtable, kvm_segment};
use migration::guest::GuestRam;
use migration::pages::{MemoryLayout, REGION_ALIGN, Region};

use super::super::*;
use crate::kvm::{self, cpuid};
use crate::memory::{self, Backing};

/// The vCPU that is looked at, of two. The second differs from the first in more of what a fresh one has: it waits for
/// INIT, and its APIC id is not 0.
pub const INDEX: u8 = 1;

pub const MTRR_DEFAULT: u32 = 0x2ff;
pub const TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that every KVM has, and values that no fresh vCPU has in them.
pub const MSRS: [(u32, u64); 12] = [
    // IA32_SYSENTER_CS, _ESP, _EIP: of these AMD keeps 32 bits.
    (0x174, 0x10),
    (0x175, 0x8100_1000),
    (0x176, 0x8100_2000),
    // The first variable MTRR, IA32_PAT, and the default type of the MTRRs.
    (0x200, 0x8000_0006),
    (0x201, 0xf_8000_0800),
    (0x277, 0x0407_0506_0007_0106),
    (MTRR_DEFAULT, 0xc06),
    // STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE.
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_ffff_8200_0080),
    (0xc000_0083, 0xffff_ffff_8200_1000),
    (0xc000_0084, 0x4_7700),
    (0xc000_0102, 0x7fff_0000_5000),
];

/// MSRs of features, by Linux's names for these: a guest that has not got one cannot miss its MSR.
const MSRS_OF_FEATURES: [(&str, u32, u64); 2] = [
    // IA32_TSC_ADJUST, IA32_TSC_AUX.
    ("tsc_adjust", 0x3b, 0x1234),
    ("rdtscp", 0xc000_0103, 0x1001),
];

/// MSRs of KVM's own, newer ones among them: what the first vCPU takes has to arrive at the second.
const MSRS_OF_KVM: [(u32, u64); 6] = [
    // The clock, page-ready interrupts with their vector, stolen time, end of interrupt: on, at an address each.
    (0x4b56_4d01, 0x1001),
    (0x4b56_4d06, 0xf3),
    (0x4b56_4d02, 0x2009),
    (0x4b56_4d03, 0x3001),
    (0x4b56_4d04, 0x4001),
    // KVM_POLL_CONTROL, which is 1 at first.
    (0x4b56_4d05, 0),
];

/// The TSC of a guest that has run for a day or two. A KVM in software has none but the host's for its guests: there it
/// cannot be seen whether a guest's arrives.
const TSC: u64 = 1 << 48;
/// So many cycles later is its deadline: most of an hour, about as much as KVM can reckon with.
pub const DISTANCE: u64 = 1 << 43;

/// MSRs that go on by themselves: IA32_TSC, and of Hyper-V's, which KVM lists, the run time and the reference counter.
/// And the deadline, which means something by its distance from IA32_TSC alone: the KVM in software moves both.
pub const CLOCKS: [u32; 4] = [MSR_IA32_TSC, TSC_DEADLINE, 0x4000_0010, 0x4000_0020];

/// Where the XMM registers lie in the XSAVE area, in words.
const XMM: Range<usize> = 40..104;

const REGS: kvm_regs = kvm_regs {
    rax: 0xa0a0_0000_0000_0001,
    rbx: 0xa0a0_0000_0000_0002,
    rcx: 0xa0a0_0000_0000_0003,
    rdx: 0xa0a0_0000_0000_0004,
    rsi: 0xa0a0_0000_0000_0005,
    rdi: 0xa0a0_0000_0000_0006,
    rsp: 0xffff_c900_0000_0007,
    rbp: 0xffff_c900_0000_0008,
    r8: 0xa0a0_0000_0000_0009,
    r9: 0xa0a0_0000_0000_000a,
    r10: 0xa0a0_0000_0000_000b,
    r11: 0xa0a0_0000_0000_000c,
    r12: 0xa0a0_0000_0000_000d,
    r13: 0xa0a0_0000_0000_000e,
    r14: 0xa0a0_0000_0000_000f,
    r15: 0xa0a0_0000_0000_0010,
    rip: 0xffff_ffff_8100_0000,
    // ID, AC, OF, IF, SF, ZF, AF, PF, CF.
    rflags: 0x24_0ad7,
};

/// A VM such as guests get. The memory is the last to go.
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    pub caps: VcpuCaps,
    cpuid: Vec<kvm_cpuid_entry2>,
    pub vm: VmFd,
    _ram: GuestRam,
}

impl Vm {
    pub fn new() -> Self {
        let kvm = kvm::open().unwrap();
        let vm = kvm::create_vm(&kvm).unwrap();
        let region = Region {
            gpa: 0,
            bytes: REGION_ALIGN,
        };
        let layout = MemoryLayout::new(vec![region]).unwrap();
        let ram = memory::map(&layout, Backing::Anonymous).unwrap();
        memory::register(&vm, &ram, false).unwrap();
        kvm::create_interrupt_controllers(&vm).unwrap();
        kvm::take_counters(&kvm, &vm).unwrap();
        let cpuid = cpuid::supported(&kvm).unwrap();
        let vcpu = |index: u8| {
            let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
            let own = cpuid::for_vcpu(&cpuid, index, INDEX + 1).unwrap();
            vcpu.set_cpuid2(&own).unwrap();
            vcpu
        };
        let vcpus: Vec<_> = (0..=INDEX).map(vcpu).collect();
        let caps = VcpuCaps::of(&kvm, &vm, &vcpus[0], &cpuid).unwrap();
        Self {
            vcpus,
            caps,
            cpuid,
            vm,
            _ram: ram,
        }
    }

    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpus[usize::from(INDEX)]
    }

    pub fn has(&self, feature: &str) -> bool {
        cpuid::features::has(&self.cpuid, feature)
    }

    pub fn save(&self) -> VcpuState {
        save(self.vcpu(), INDEX, &self.caps).unwrap().state
    }

    pub fn restore(&self, state: &VcpuState) -> Result<(), VcpuStateError> {
        restore(self.vcpu(), INDEX, &self.caps, state, None)
    }

    /// Sets one MSR; whether KVM took it.
    fn takes(&self, index: u32, data: u64) -> bool {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let entries = Msrs::from_entries(&[entry]).unwrap();
        self.vcpu().set_msrs(&entries).unwrap() == 1
    }

    /// What KVM says of the vCPU, read without the code under test, with these MSRs.
    pub fn told(&self, msrs: &[u32]) -> VcpuState {
        let vcpu = self.vcpu();
        let entries: Vec<_> = (msrs.iter())
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut entries = Msrs::from_entries(&entries).unwrap();
        assert_eq!(vcpu.get_msrs(&mut entries).unwrap(), msrs.len());
        VcpuState {
            mp_state: vcpu.get_mp_state().unwrap(),
            regs: vcpu.get_regs().unwrap(),
            sregs: vcpu.get_sregs().unwrap(),
            xsave: vcpu.get_xsave().unwrap().region.to_vec(),
            xcrs: vcpu.get_xcrs().unwrap(),
            debugregs: vcpu.get_debug_regs().unwrap(),
            lapic: vcpu.get_lapic().unwrap(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            msrs: entries.as_slice().to_vec(),
            events: vcpu.get_vcpu_events().unwrap(),
        }
    }

    /// Gives the vCPU what a guest would miss, and looks that KVM has it. The MSRs that it took are the answer.
    ///
    /// Not among it, since Ferry offers no guest the features: nested state, shadow stacks. Nor an SMI, a triple fault
    /// (KVM tells none to a VMM that has not asked for it), and performance counters, which do not travel.
    pub fn fill(&self, events: kvm_vcpu_events) -> Vec<u32> {
        let vcpu = self.vcpu();
        let mp_state = kvm_mp_state {
            mp_state: KVM_MP_STATE_HALTED,
        };
        vcpu.set_mp_state(mp_state).unwrap();
        vcpu.set_regs(&REGS).unwrap();
        let sregs = self.long_mode();
        vcpu.set_sregs(&sregs).unwrap();
        let float = self.float();
        xsave::set(vcpu, self.caps.xsave_bytes, &float).unwrap();
        let mut xcrs = vcpu.get_xcrs().unwrap();
        // A processor without XSAVE has no XCR0.
        if xcrs.nr_xcrs > 0 {
            xcrs.xcrs[0].value = if self.has("xcr0:avx") { 7 } else { 3 };
            vcpu.set_xcrs(&xcrs).unwrap();
        }
        let debugregs = kvm_debugregs {
            db: [0x1111_1000, 0x2222_2000, 0x3333_3000, 0x4444_4000],
            // The last fault was at the first breakpoint.
            dr6: 0xffff_0ff1,
            // The first breakpoint is on, for writes to 4 bytes.
            dr7: 0x000d_0402,
            ..Default::default()
        };
        vcpu.set_debug_regs(&debugregs).unwrap();
        vcpu.set_lapic(&self.lapic()).unwrap();
        let of_features = MSRS_OF_FEATURES.iter().filter(|(name, ..)| self.has(name));
        let mut msrs: Vec<_> = (MSRS.into_iter())
            .chain(of_features.map(|(_, msr, value)| (*msr, *value)))
            .collect();
        for (msr, value) in &msrs {
            assert!(self.takes(*msr, *value), "MSR {msr:#x}");
        }
        msrs.extend((MSRS_OF_KVM.iter()).filter(|(msr, value)| self.takes(*msr, *value)));
        let mut indices: Vec<_> = msrs.iter().map(|(msr, _)| *msr).collect();
        assert!(self.takes(MSR_IA32_TSC, TSC));
        indices.push(MSR_IA32_TSC);
        if self.has("tsc_deadline_timer") {
            assert!(self.takes(TSC_DEADLINE, TSC + DISTANCE));
            indices.push(TSC_DEADLINE);
        }
        vcpu.set_vcpu_events(&events).unwrap();

        let told = self.told(&indices);
        assert_eq!((told.mp_state, told.regs), (mp_state, REGS));
        // Attributes of segments may come back with bits that the processor adds.
        assert_eq!(control(&told.sregs), control(&sregs));
        assert_eq!(told.xsave[XMM], float[XMM]);
        assert_eq!((told.xcrs, told.debugregs), (xcrs, debugregs));
        let still = told.msrs.iter().filter(|m| !CLOCKS.contains(&m.index));
        let values: Vec<_> = still.map(|m| (m.index, m.data)).collect();
        assert_eq!(values, msrs);
        assert_eq!(told.events.exception, events.exception);
        assert_eq!(told.events.nmi, events.nmi);
        let of = |e: &kvm_vcpu_events| (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft);
        assert_eq!(of(&told.events), of(&events));
        // AMD's processors do not tell the two kinds of shadow apart.
        assert_eq!(
            told.events.interrupt.shadow & events.interrupt.shadow,
            events.interrupt.shadow
        );
        indices
    }

    /// Segments and control registers of a 64-bit kernel.
    fn long_mode(&self) -> kvm_sregs {
        let segment = |base, selector, type_| kvm_segment {
            base,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let system = |base, selector, type_| kvm_segment {
            limit: 0x67,
            s: 0,
            g: 0,
            ..segment(base, selector, type_)
        };
        let table = |base, limit| kvm_dtable {
            base,
            limit,
            ..Default::default()
        };
        let bit = |set: bool, bit: u32| u64::from(set) << bit;
        let blank = self.vcpu().get_sregs().unwrap();
        kvm_sregs {
            cs: kvm_segment {
                l: 1,
                ..segment(0, 0x10, 0xb)
            },
            ds: kvm_segment {
                db: 1,
                ..segment(0, 0x18, 3)
            },
            ss: kvm_segment {
                db: 1,
                ..segment(0, 0x18, 3)
            },
            fs: segment(0x7fff_1234_5000, 0, 3),
            gs: segment(0xffff_8880_1234_0000, 0, 3),
            tr: system(0xffff_fe00_0000_3000, 0x40, 0xb),
            ldt: system(0xffff_fe00_0000_5000, 0x50, 2),
            gdt: table(0xffff_fe00_0000_1000, 0x7f),
            idt: table(0xffff_fe00_0000_0000, 0xfff),
            // PE, MP, ET, NE, WP, AM, PG.
            cr0: 0x8005_0033,
            cr2: 0x7f12_3456_7890,
            cr3: 0x5000,
            // PAE, PGE, OSFXSR, OSXMMEXCPT; OSXSAVE.
            cr4: 0x6a0 | bit(self.has("xsave"), 18),
            cr8: 5,
            // SCE, LME, LMA, NX.
            efer: 0xd01,
            // The APIC is on; in x2APIC mode where there is one.
            apic_base: 0xfee0_0800 | bit(self.has("x2apic"), 10),
            ..blank
        }
    }

    /// The x87 control word, a number in ST0, MXCSR, XMM registers and, where they exist, the upper halves of YMM.
    fn float(&self) -> Vec<u32> {
        let mut words = self.vcpu().get_xsave().unwrap().region.to_vec();
        // Control word (round towards zero) and status word (top of stack 7); tags.
        words[0] = 0x3800_0f7f;
        words[1] = 0x80;
        words[6] = 0x7f80;
        words[8..11].copy_from_slice(&[0, 0x8000_0000, 0x3fff]);
        let pattern = |words: &mut [u32], seed: u32| {
            for (word, i) in words.iter_mut().zip(0..) {
                *word = seed | i;
            }
        };
        pattern(&mut words[XMM], 0x5eed_0000);
        // XSTATE_BV says what of the area holds: x87, SSE, AVX.
        words[128] |= 3;
        if self.has("xcr0:avx") {
            pattern(&mut words[144..208], 0xfeed_0000);
            words[128] |= 4;
        }
        words
    }

    /// A local APIC in the middle of things. The timer waits for a TSC deadline where there is one, and else is masked.
    fn lapic(&self) -> kvm_lapic_state {
        let mut lapic = self.vcpu().get_lapic().unwrap();
        let timer = match self.has("tsc_deadline_timer") {
            true => 0x4_00ec,
            false => 0x1_00ec,
        };
        let registers: [(usize, u32); 12] = [
            // Priority (CR8 is the same), spurious vector and software enable.
            (0x80, 0x50),
            (0xf0, 0x1ff),
            // In service: vector 0x41. Level-triggered and requested: 0x61.
            (0x120, 1 << 1),
            (0x1b0, 1 << 1),
            (0x230, 1 << 1),
            // The last interrupt that was sent.
            (0x300, 0x40fd),
            (0x310, 0),
            // Timer, LINT0, LINT1, error; divisor of the timer.
            (0x320, timer),
            (0x350, 0x1_0700),
            (0x360, 0x400),
            (0x370, 0xfe),
            (0x3e0, 0xb),
        ];
        for (register, value) in registers {
            let place = &mut lapic.regs[register..register + 4];
            for (to, from) in place.iter_mut().zip(value.to_le_bytes()) {
                *to = from.cast_signed();
            }
        }
        lapic
    }
}

/// What of the control registers and bases comes back as it was set, on every processor.
fn control(sregs: &kvm_sregs) -> [u64; 13] {
    [
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.cr8,
        sregs.efer,
        sregs.apic_base,
        sregs.fs.base,
        sregs.gs.base,
        sregs.tr.base,
        sregs.ldt.base,
        sregs.gdt.base,
        sregs.idt.base,
    ]
}
