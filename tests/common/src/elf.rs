//! Generates small x86-64 ELF files.

/// An ELF file with one program header for each segment, given as type and content.
pub fn elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18] = 62;
    file[32] = 64;
    file[54] = 56;
    file[56] = segments.len() as u8;
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, content) in segments {
        let size = content.len() as u64;
        file.extend(kind.to_le_bytes());
        file.extend([0; 4]);
        for field in [offset, 0, 0, size, size, 4] {
            file.extend(field.to_le_bytes());
        }
        offset += size;
    }
    segments.iter().for_each(|(_, content)| file.extend(*content));
    file
}
