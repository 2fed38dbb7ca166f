//! Random numbers: Philox 4x32-10, counter based, so that element i of a stream is known without
//! the ones before it, and any number of threads (or a GPU) makes the same numbers.

use rayon::prelude::*;

use crate::level::{self, array};

/// One block of the Philox 4x32-10 bijection (Salmon et al. 2011, "Parallel random numbers: as
/// easy as 1, 2, 3").
#[inline]
pub fn philox4x32_10(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    philox(c.map(|c| [c as u64]), k).map(|[r]| r as u32)
}

/// W blocks side by side. Each 32-bit word lies in 64 bits, of which the upper half is noise:
/// vectors multiply so, without moving lanes.
#[inline(always)]
fn philox<const W: usize>(mut c: [[u64; W]; 4], k: [u32; 2]) -> [[u64; W]; 4] {
    const LOW: u64 = u32::MAX as u64;
    let mut k = k.map(u64::from);
    for _ in 0..10 {
        for l in 0..W {
            let p0 = 0xD251_1F53 * (c[0][l] & LOW);
            let p1 = 0xCD9E_8D57 * (c[2][l] & LOW);
            c[0][l] = (p1 >> 32) ^ c[1][l] ^ k[0];
            c[1][l] = p1;
            c[2][l] = (p0 >> 32) ^ c[3][l] ^ k[1];
            c[3][l] = p0;
        }
        k = [k[0] + 0x9E37_79B9, k[1] + 0xBB67_AE85];
    }
    c
}

/// A stream of random numbers: a seed (the key) and how many blocks of four were taken.
///
/// Every call takes whole blocks, so the state is these two numbers; saving them resumes the
/// stream bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Generator {
    /// The key.
    pub seed: u64,
    /// Blocks taken so far.
    pub offset: u64,
}

/// Elements a parallel task fills; a multiple of 4 so that tasks start at whole blocks.
const CHUNK: usize = 1 << 14;
/// Blocks that are made side by side.
const BLOCKS: usize = 16;
/// The words in them.
const WORDS: usize = 4 * BLOCKS;

impl Generator {
    /// A stream from its start.
    pub fn new(seed: u64) -> Self {
        Generator { seed, offset: 0 }
    }

    /// An independent stream, seeded from this one: for a layer's own dropout, a worker's own
    /// augmentation.
    pub fn fork(&mut self) -> Self {
        let b = self.take(1);
        let r = block(self.seed, b);
        Generator::new((r[0] as u64) << 32 | r[1] as u64)
    }

    /// Reserve `blocks` blocks of four numbers; the offset of the first.
    pub fn take(&mut self, blocks: u64) -> u64 {
        let start = self.offset;
        self.offset += blocks;
        start
    }

    /// A whole number, uniform below `n` (> 0).
    pub fn below(&mut self, n: u64) -> u64 {
        let b = self.take(1);
        let r = block(self.seed, b);
        let wide = (((r[0] as u64) << 32 | r[1] as u64) as u128) * n as u128;
        (wide >> 64) as u64
    }

    /// A float, uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        let b = self.take(1);
        let r = block(self.seed, b);
        ((r[0] as u64) << 21 | (r[1] as u64) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A float, normal with mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        let b = self.take(1);
        normals(block(self.seed, b))[0]
    }

    /// 0..n in a random order (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut p: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            p.swap(i, self.below(i as u64 + 1) as usize);
        }
        p
    }

    /// Fill with uniform numbers in [0, 1), 24 bits each, as `f` takes them.
    pub fn fill_uniform<T: Send>(&mut self, out: &mut [T], f: impl Fn(f32) -> T + Sync) {
        self.fill(
            out,
            #[inline(always)]
            |words, out| {
                for (o, &w) in out.iter_mut().zip(words) {
                    *o = f(unit(w));
                }
            },
        );
    }

    /// Fill with normal numbers of mean 0 and variance 1, as `f` takes them.
    pub fn fill_normal<T: Send>(&mut self, out: &mut [T], f: impl Fn(f64) -> T + Sync) {
        self.fill(out, |words, out| {
            for (out, &r) in out.chunks_mut(4).zip(words.as_chunks().0) {
                for (o, v) in out.iter_mut().zip(normals(r)) {
                    *o = f(v);
                }
            }
        });
    }

    /// Call `some(words, out)` with the words of a few blocks for each stretch of as many outputs.
    fn fill<T: Send>(&mut self, out: &mut [T], some: impl Fn(&[u32; WORDS], &mut [T]) + Sync) {
        let (start, seed) = (self.take(out.len().div_ceil(4) as u64), self.seed);
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
            let start = start.wrapping_add((i * CHUNK / 4) as u64);
            level::run(
                #[inline(always)]
                || {
                    for (j, out) in out.chunks_mut(WORDS).enumerate() {
                        some(&words(seed, start.wrapping_add((j * BLOCKS) as u64)), out);
                    }
                },
            );
        });
    }
}

/// The words of the stream of `seed` from block `offset` on.
#[inline(always)]
fn words(seed: u64, offset: u64) -> [u32; WORDS] {
    let at: [u64; BLOCKS] = array(|l| offset.wrapping_add(l as u64));
    let zero = [0; BLOCKS];
    let r = philox([at, array(|l| at[l] >> 32), zero, zero], key(seed));
    array(|i| r[i % 4][i / 4] as u32)
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Block `offset` of the stream of `seed`.
#[inline]
pub fn block(seed: u64, offset: u64) -> [u32; 4] {
    philox4x32_10([offset as u32, (offset >> 32) as u32, 0, 0], key(seed))
}

/// 32 random bits as a float in [0, 1): the upper 24 bits, so that every value is exact in f32.
#[inline]
pub fn unit(x: u32) -> f32 {
    (x >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Four normal numbers from a block, by Box and Muller (1958).
fn normals(r: [u32; 4]) -> [f64; 4] {
    let pair = |a: u32, b: u32| {
        // (0, 1], so that the logarithm is finite
        let u = (a as f64 + 1.0) / 4294967296.0;
        let angle = std::f64::consts::TAU * (b as f64 / 4294967296.0);
        let radius = (-2.0 * u.ln()).sqrt();
        [radius * angle.cos(), radius * angle.sin()]
    };
    let ([a, b], [c, d]) = (pair(r[0], r[1]), pair(r[2], r[3]));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // the kat_vectors file of Random123
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn blocks_side_by_side_are_those_alone_at_all_levels() {
        let (seed, offset) = (u64::MAX - 5, u32::MAX as u64 - 7);
        let alone: Vec<_> = (0..BLOCKS as u64)
            .flat_map(|i| block(seed, offset + i))
            .collect();
        for level in level::Level::available() {
            let together = level.run(
                #[inline(always)]
                || words(seed, offset),
            );
            assert_eq!(together, alone[..], "{level:?}");
        }
    }

    #[test]
    fn streams_do_not_depend_on_threads_and_have_their_moments() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let (mut g, mut v) = (Generator::new(7), vec![0f64; 100_003]);
                g.fill_normal(&mut v, |x| x);
                (v, g)
            })
        };
        let (a, b) = (run(1), run(3));
        assert_eq!(a, b);
        let n = a.0.len() as f64;
        let mean = a.0.iter().sum::<f64>() / n;
        let var = a.0.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        assert!(
            mean.abs() < 0.01 && (var - 1.0).abs() < 0.02,
            "mean {mean} variance {var}"
        );
        let mut u = vec![0f32; 10_000];
        Generator::new(1).fill_uniform(&mut u, |x| x);
        assert!(u.iter().all(|x| (0.0..1.0).contains(x)));
    }

    #[test]
    fn permutation_holds_each_once() {
        let mut p = Generator::new(3).permutation(1000);
        assert_ne!(p[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        p.sort_unstable();
        assert!(p.into_iter().eq(0..1000));
    }
}
