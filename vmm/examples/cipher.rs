//! scratch
use ring::aead::*;
use std::time::Instant;
fn main() {
    for (name, alg) in [
        ("aes128", &AES_128_GCM),
        ("aes256", &AES_256_GCM),
        ("chacha", &CHACHA20_POLY1305),
    ] {
        let key = LessSafeKey::new(UnboundKey::new(alg, &vec![7u8; alg.key_len()]).unwrap());
        let mut best_s = f64::MAX;
        let mut best_o = f64::MAX;
        for _ in 0..8 {
            let mut buf = vec![0u8; 16384];
            let n = 4096;
            let t = Instant::now();
            let mut tag = None;
            for i in 0..n {
                let mut nonce = [0u8; 12];
                nonce[..4].copy_from_slice(&(i as u32).to_le_bytes());
                tag = Some(
                    key.seal_in_place_separate_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::empty(),
                        &mut buf,
                    )
                    .unwrap(),
                );
            }
            best_s = best_s.min(t.elapsed().as_secs_f64() / n as f64);
            let mut nonce = [0u8; 12];
            nonce[..4].copy_from_slice(&(n as u32 - 1).to_le_bytes());
            let mut sealed = buf.clone();
            sealed.extend_from_slice(tag.unwrap().as_ref());
            let mut copies: Vec<Vec<u8>> = (0..256).map(|_| sealed.clone()).collect();
            let t = Instant::now();
            for c in &mut copies {
                key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), c)
                    .unwrap();
            }
            best_o = best_o.min(t.elapsed().as_secs_f64() / 256.0);
        }
        println!(
            "{name}: seal {:.2} GB/s open {:.2} GB/s",
            16384.0 / best_s / 1e9,
            16384.0 / best_o / 1e9
        );
    }
}
