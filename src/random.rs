//! Random numbers: Philox 4x32-10, counter based, so that element i of a stream is known without
//! the ones before it, and any number of threads (or a GPU) makes the same numbers.

use rayon::prelude::*;

use crate::level::{self, array};
use crate::workers::Parallel;

/// One block of the Philox 4x32-10 bijection (Salmon et al. 2011, "Parallel random numbers: as
/// easy as 1, 2, 3").
///
/// Never a part of a loop that calls it: what LLVM asks of every value in a loop takes it exponential
/// time on rounds that use each product twice.
#[inline(never)]
pub fn philox4x32_10(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    philox(c.map(|c| [c as u64]), k).map(|[r]| r as u32)
}

/// W blocks side by side. Each 32-bit word lies in 64 bits, of which the upper half is noise:
/// vectors multiply so, without moving lanes.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes of all words at once
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
        let r = block(self.seed, b);
        normal_pair(r[0], r[1])[0]
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
            words,
            #[inline(always)]
            |w| f(unit(w)),
        );
    }

    /// Fill with normal numbers of mean 0 and variance 1, as `f` takes them.
    pub fn fill_normal<T: Send>(&mut self, out: &mut [T], f: impl Fn(f64) -> T + Sync) {
        self.fill(out, normals, f);
    }

    /// Fill with `f` of what `make(seed, offset)` gives of a few blocks, a number for each word.
    fn fill<W: Copy, T: Send>(
        &mut self,
        out: &mut [T],
        make: fn(u64, u64) -> [W; WORDS],
        f: impl Fn(W) -> T + Sync,
    ) {
        let (start, seed) = (self.take(out.len().div_ceil(4) as u64), self.seed);
        out.par_chunks_mut(CHUNK).enumerate().each(|(i, out)| {
            let start = start.wrapping_add((i * CHUNK / 4) as u64);
            for (j, out) in out.chunks_mut(WORDS).enumerate() {
                let made = make(seed, start.wrapping_add((j * BLOCKS) as u64));
                level::run(
                    #[inline(always)]
                    || {
                        for (o, &w) in out.iter_mut().zip(&made) {
                            *o = f(w);
                        }
                    },
                );
            }
        });
    }
}

/// The words of the stream of `seed` from block `offset` on. A function of its own: as a part of
/// each loop that takes words, it would be compiled many times over.
#[inline(never)]
fn words(seed: u64, offset: u64) -> [u32; WORDS] {
    level::run(
        #[inline(always)]
        || words_here(seed, offset),
    )
}

#[inline(always)]
fn words_here(seed: u64, offset: u64) -> [u32; WORDS] {
    let at: [u64; BLOCKS] = array(|l| offset.wrapping_add(l as u64));
    let zero = [0; BLOCKS];
    let r = philox([at, array(|l| at[l] >> 32), zero, zero], key(seed));
    array(|i| r[i % 4][i / 4] as u32)
}

/// Normal numbers from the words of the stream of `seed` from block `offset` on.
#[inline(never)]
fn normals(seed: u64, offset: u64) -> [f64; WORDS] {
    let words = words(seed, offset);
    let mut all = [0.0; WORDS];
    level::run(
        #[inline(always)]
        || {
            for (all, w) in all
                .as_chunks_mut::<2>()
                .0
                .iter_mut()
                .zip(words.as_chunks::<2>().0)
            {
                *all = normal_pair(w[0], w[1]);
            }
        },
    );
    all
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Block `offset` of the stream of `seed`.
pub fn block(seed: u64, offset: u64) -> [u32; 4] {
    philox4x32_10([offset as u32, (offset >> 32) as u32, 0, 0], key(seed))
}

/// 32 random bits as a float in [0, 1): the upper 24 bits, so that every value is exact in f32.
#[inline]
pub fn unit(x: u32) -> f32 {
    (x >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Two normal numbers from two words, by Box and Muller (1958).
#[inline(always)]
fn normal_pair(a: u32, b: u32) -> [f64; 2] {
    // of (0, 1], so that the logarithm is finite
    let radius = (-2.0 * ln_of_share(a)).sqrt();
    let [cos, sin] = turn(b);
    [radius * cos, radius * sin]
}

/// sum of c\[i\] z^i.
#[inline(always)]
fn polynomial<const N: usize>(z: f64, c: [f64; N]) -> f64 {
    let mut sum = 0.0;
    for i in (0..N).rev() {
        sum = sum * z + c[i];
    }
    sum
}

/// ln((a + 1) / 2^32), to about an ulp. Without branches and calls, unlike the library's, so that
/// many are computed side by side. With a + 1 = m 2^e and s = (m - 1) / (m + 1), ln m is
/// 2 (s + s^3 / 3 + ..), its coefficients fitted to the range (FreeBSD's msun, e_log.c).
#[inline(always)]
fn ln_of_share(a: u32) -> f64 {
    let x = a as f64 + 1.0;
    // m in sqrt(1/2) to sqrt(2)
    let bits = x.to_bits() + (0x3FF0_0000_0000_0000 - 0x3FE6_A09E_667F_3BCD);
    let e = (bits >> 52) as i32 as f64 - 1023.0;
    let m = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) + 0x3FE6_A09E_667F_3BCD);
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let rest = z * polynomial(
        z,
        [
            0.666_666_666_666_673_5,
            0.399_999_999_994_094_2,
            0.285_714_287_436_623_9,
            0.222_221_984_321_497_84,
            0.181_835_721_616_180_5,
            0.153_138_376_992_093_73,
            0.147_981_986_051_165_86,
        ],
    );
    let half = 0.5 * f * f;
    (e - 32.0) * std::f64::consts::LN_2 + (f - (half - s * (half + rest)))
}

/// The cosine and sine of b / 2^32 of a turn: of an eighth of a turn at most, by polynomials
/// (msun's k_cos.c and k_sin.c), rotated by whole quarters.
#[inline(always)]
fn turn(b: u32) -> [f64; 2] {
    let quarter = b.wrapping_add(1 << 29) >> 30;
    let x = b.wrapping_sub(quarter << 30) as i32 as f64 * (std::f64::consts::TAU / 4294967296.0);
    let z = x * x;
    let sin = x + x
        * z
        * polynomial(
            z,
            [
                -0.166_666_666_666_666_32,
                0.008_333_333_333_322_49,
                -0.000_198_412_698_298_579_5,
                2.755_731_370_707_006_8e-6,
                -2.505_076_025_340_686_3e-8,
                1.589_690_995_211_55e-10,
            ],
        );
    let cos = 1.0 - 0.5 * z
        + z * z
            * polynomial(
                z,
                [
                    0.041_666_666_666_666_6,
                    -0.001_388_888_888_887_411,
                    2.480_158_728_947_673e-5,
                    -2.755_731_435_139_066_3e-7,
                    2.087_572_321_298_175e-9,
                    -1.135_964_755_778_819_5e-11,
                ],
            );
    let (c, s) = if quarter & 1 == 0 {
        (cos, sin)
    } else {
        (sin, cos)
    };
    let sign = |negative: bool| if negative { -1.0 } else { 1.0 };
    [c * sign((quarter + 1) & 2 != 0), s * sign(quarter & 2 != 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::on_threads;

    #[test]
    fn logarithms_and_turns_are_the_librarys() {
        let mut words = Generator::new(3);
        let edges = [
            0,
            1,
            2,
            (1 << 29) - 1,
            1 << 29,
            3 << 29,
            1 << 30,
            1 << 31,
            u32::MAX,
        ];
        for w in edges
            .into_iter()
            .chain((0..100_000).map(|_| words.below(1 << 32) as u32))
        {
            let x = (w as f64 + 1.0) / 4294967296.0;
            let (got, want) = (ln_of_share(w), x.ln());
            assert!(
                (got - want).abs() <= 3e-16 * want.abs(),
                "{w}: {got} {want}"
            );
            let angle = std::f64::consts::TAU * (w as f64 / 4294967296.0);
            let [c, s] = turn(w);
            assert!(
                (c - angle.cos()).abs() < 1e-15 && (s - angle.sin()).abs() < 1e-15,
                "{w}"
            );
        }
    }

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
                || words_here(seed, offset),
            );
            assert_eq!(together, alone[..], "{level:?}");
        }
    }

    #[test]
    fn streams_do_not_depend_on_threads_and_have_their_moments() {
        let run = |threads| {
            on_threads(threads, || {
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
