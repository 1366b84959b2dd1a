//! Whether an emulator runs this program: QEMU without KVM.

/// Whether QEMU's TCG emulates the processor. Its hypervisor leaf names it, for every model of `-cpu`.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_emulated() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
}

/// Whether QEMU's TCG emulates the processor, as far as that can be seen: `-cpu max` can be told from real processors.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn is_emulated() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_no_implementer(&text))
}

/// Whether the first processor has the implementer code that is reserved for software (Arm Architecture Reference Manual, `MIDR_EL1`).
#[cfg(any(test, not(target_arch = "x86_64")))]
fn has_no_implementer(cpuinfo: &str) -> bool {
    let implementer = cpuinfo.lines().find_map(|line| line.strip_prefix("CPU implementer"));
    implementer.is_some_and(|value| value.trim_start_matches([' ', '\t', ':']) == "0x00")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_arm_processor_is_told_by_its_implementer() {
        let cpuinfo = |implementer: &str| {
            format!(
                "processor\t: 0\nBogoMIPS\t: 125.00\nCPU implementer\t: {implementer}\nCPU architecture: 8\nCPU part\t: 0x051\n"
            )
        };
        assert!(has_no_implementer(&cpuinfo("0x00")));
        for real in ["0x41", "0xc0", "0x61", ""] {
            assert!(!has_no_implementer(&cpuinfo(real)), "{real}");
        }
        assert!(!has_no_implementer("processor\t: 0\nvendor_id\t: GenuineIntel\n"));
        assert!(!has_no_implementer(""));
    }
}
