//! The shipped PTX: which module holds a kernel, and what its parameters are.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Written by `kernels/build.py`: (`pool`, the text of `pool.ptx`) and so on.
const MODULES: &[(&str, &str)] = include!("../../kernels/ptx/modules.rs");

/// A kernel: where it is, and what a launch has to hand it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place in [`modules`].
    pub module: usize,
    /// A letter a parameter: `l` 8 bytes (a pointer or an integer: the compiler writes both as
    /// `.u64`), `i` 4 bytes of integer, `f` f32, `d` f64, `{76}` a struct of 76 bytes; `?` what
    /// no kernel should take.
    pub parameters: String,
}

/// The modules' names and texts.
pub fn modules() -> &'static [(&'static str, &'static str)] {
    MODULES
}

/// The kernel of this name.
pub fn entry(name: &str) -> Option<&'static Entry> {
    static ENTRIES: OnceLock<HashMap<&str, Entry>> = OnceLock::new();
    ENTRIES
        .get_or_init(|| {
            let all = MODULES.iter().enumerate();
            all.flat_map(|(module, (_, text))| {
                entries(text).map(move |(name, parameters)| (name, Entry { module, parameters }))
            })
            .collect()
        })
        .get(name)
}

/// The kernels in a PTX text, with their parameters.
pub fn entries(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.split(".visible .entry ").skip(1).filter_map(|kernel| {
        let (name, rest) = kernel.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        let parameters = parameters.split(".param ").skip(1).map(letter).collect();
        Some((name, parameters))
    })
}

/// What a declaration such as `.align 4 .b8 walk_param_0[76],` takes.
fn letter(declaration: &str) -> String {
    if let Some((_, size)) = declaration.split_once('[') {
        return format!("{{{}}}", size.split(']').next().unwrap_or("?"));
    }
    match declaration.split_whitespace().next() {
        Some(".u64" | ".s64" | ".b64") => "l",
        Some(".u32" | ".s32" | ".b32") => "i",
        Some(".f32") => "f",
        Some(".f64") => "d",
        _ => "?",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nvcc 13 writes it for compute_80, and `.ptr` as it does for newer targets.
    const TEXT: &str = "\
.version 8.0
.target sm_80
.func (.param .b64 func_retval0) __internal_accurate_pow
(
\t.param .b64 __internal_accurate_pow_param_0
)
;
.visible .entry scale_f32(
\t.param .u64 scale_f32_param_0,
\t.param .u64 .ptr .align 1 scale_f32_param_1,
\t.param .u32 scale_f32_param_2,
\t.param .f64 scale_f32_param_3,
\t.param .align 4 .b8 scale_f32_param_4[76],
\t.param .f32 scale_f32_param_5,
\t.param .u8 scale_f32_param_6
)
.maxntid 256, 1, 1
{
\tld.param.u64 \t%rd1, [scale_f32_param_0];
\tret;
}
\t// .globl\tnothing
.visible .entry nothing()
.maxntid 32, 1, 1
{
\tret;
}
";

    #[test]
    fn parameters_as_letters() {
        let found: Vec<_> = entries(TEXT).collect();
        let expected = [("scale_f32", "llid{76}f?".into()), ("nothing", "".into())];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_kernel_is_found_in_its_module() {
        for (module, (_, text)) in modules().iter().enumerate() {
            for (name, parameters) in entries(text) {
                assert_eq!(entry(name), Some(&Entry { module, parameters }), "{name}");
            }
        }
        assert_eq!(entry("no_such_kernel"), None);
    }

    /// What a launch is checked against on a GPU is what the emulated device checks, as far as
    /// the PTX tells.
    #[cfg(feature = "emulator")]
    #[test]
    fn parameters_are_those_of_the_sources() {
        use crate::cuda::{driver::Driver, emulated::Emulated};

        let mut device = Emulated::new().unwrap();
        for (name, parameters) in modules().iter().flat_map(|(_, text)| entries(text)) {
            let full = device.find(name).unwrap().signature;
            let mut letters = full.chars();
            let mut expected = String::new();
            while let Some(letter) = letters.next() {
                match letter {
                    // a pointer, and what it points to
                    'r' | 'p' => {
                        letters.next();
                        expected.push('l');
                    }
                    'u' => expected.push('i'),
                    other => expected.push(other),
                }
            }
            assert_eq!(
                parameters, expected,
                "{name}: {full} in the emulator's letters"
            );
        }
    }
}
