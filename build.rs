//! Compiles the CUDA kernels as C++ for the emulated device, with the feature `emulator` only.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator::build();
}

#[cfg(feature = "emulator")]
mod emulator {
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::{env, fs};

    /// This file: flags are part of what goes into an object.
    const BUILD: &str = include_str!("build.rs");

    /// A file of kernels: `kernels/pool.cu`, compiled through a generated `pool.cpp`.
    struct Kernels {
        stem: String,
        source: PathBuf,
    }

    pub fn build() {
        let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
        let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
        let (target, system) = (
            env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default(),
            env::var("CARGO_CFG_TARGET_OS").unwrap_or_default(),
        );
        if (target.as_str(), system.as_str()) != ("x86_64", "linux") {
            panic!("the feature `emulator` (the emulated CUDA device) works on x86-64 Linux only");
        }
        // set by kernels/emulator/sanitize.sh, which runs this program by itself
        let sanitizer = env::var("COTANGENT_SANITIZER").unwrap_or_default();

        let mut kernels = compiler(&root);
        let mut runtime = compiler(&root);
        let there = kernels
            .try_get_compiler()
            .map_err(|e| e.to_string())
            .and_then(|c| {
                Command::new(c.path())
                    .arg("--version")
                    .output()
                    .map_err(|e| e.to_string())
            });
        if let Err(reason) = there {
            panic!(
                "the feature `emulator` needs a C++17 compiler (Debian: apt install g++; or name one in CXX): {reason}"
            );
        }
        sanitize(&sanitizer, &mut kernels, &mut runtime);

        let mut library = cc::Build::new();
        let mut stems = Vec::new();
        let mut stale = Vec::new();
        for Kernels { stem, source } in kernel_files(&root) {
            // an unnamed namespace, so that the files' names cannot clash
            let wrapper = format!(
                "#define EMU_TU {stem}\n#include \"emulator/emu.h\"\nnamespace {{\n#include \"{}\"\n}}\n\
                 extern \"C\" void emu_link_{stem}(void) {{}}\n",
                source.display()
            );
            let path = out.join(format!("{stem}.cpp"));
            write(&path, &wrapper);
            // a change of one file compiles that one anew: the object's name tells what went into it
            let mut texts = BTreeMap::from([(path.clone(), wrapper)]);
            for file in [source, root.join("kernels/emulator/emu.h")] {
                included(&root, file, &mut texts);
            }
            let mut hash = DefaultHasher::new();
            (texts, &sanitizer, env::var("OPT_LEVEL").ok(), BUILD).hash(&mut hash);
            let object = out.join(format!("{stem}.{:016x}.o", hash.finish()));
            library.object(&object);
            if !object.exists() {
                kernels.file(path);
                stale.push((stem.clone(), object));
            }
            stems.push(stem);
        }
        if !stale.is_empty() {
            for ((stem, object), compiled) in stale.iter().zip(kernels.compile_intermediates()) {
                gather_shared(&kernels, stem, &compiled, object);
            }
        }
        library.compile("cotangent_emulated_kernels");

        // a symbol of every file, so that the linker takes them all
        let mut link_all = String::new();
        let mut calls = String::new();
        for stem in stems {
            let _ = writeln!(link_all, "extern \"C\" void emu_link_{stem}(void);");
            let _ = writeln!(calls, "  emu_link_{stem}();");
        }
        let _ = write!(
            link_all,
            "extern \"C\" void emu_link_all_kernels(void) {{\n{calls}}}\n"
        );
        let path = out.join("link_all.cpp");
        write(&path, &link_all);
        runtime.file(path);
        for source in files(&root.join("kernels/emulator"), "cpp") {
            runtime.file(source);
        }
        println!("cargo:rerun-if-changed=kernels");

        runtime.compile("cotangent_emulator");
    }

    fn compiler(root: &Path) -> cc::Build {
        // as slow as the profile's, where it asks for code that can be stepped through; else fast
        let profile = env::var("OPT_LEVEL").unwrap_or_default();
        let optimization = if profile == "0" { 0 } else { 2 };
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(optimization)
            .debug(true)
            .warnings(false)
            .flag("-fdata-sections")
            .include(root.join("kernels"))
            // fused multiply-add and conversion of f16, as the device has them
            .flag("-march=x86-64-v3")
            // a stack that is too small ends at the page that guards it, and not behind that
            .flag("-fstack-clash-protection")
            // messages name kernels/pool.cu, wherever the tree lies
            .flag(format!("-fmacro-prefix-map={}/=", root.display()));
        build
    }

    /// `asan`: addresses and undefined behaviour. `tsan`: races. The runtime switches stacks, which
    /// ASan must see and TSan must not: it is told by hand.
    fn sanitize(name: &str, kernels: &mut cc::Build, runtime: &mut cc::Build) {
        match name {
            "" => {}
            "asan" => {
                for build in [kernels, runtime] {
                    build
                        .flag("-fsanitize=address,undefined")
                        .flag("-fno-sanitize-recover=undefined")
                        .flag("-fno-omit-frame-pointer");
                }
            }
            "tsan" => {
                kernels.flag("-fsanitize=thread").define("EMU_TSAN", None);
                runtime.define("EMU_TSAN", None);
            }
            other => panic!("COTANGENT_SANITIZER={other}: asan and tsan are known"),
        }
    }

    /// Turns a compiled object into one whose `__shared__` arrays (functions' static variables: C++
    /// begins their names with `_ZZ`) lie in a section of their own, between `__start_` and `__stop_`
    /// of its name.
    fn gather_shared(build: &cc::Build, stem: &str, compiled: &Path, object: &Path) {
        let script = compiled.with_extension("ld");
        let section = format!("emu_shared_{stem} 0 : {{ *(.bss._ZZ* .data._ZZ*) }}");
        write(&script, &format!("SECTIONS {{ {section} }}\n"));
        let gathered = compiled.with_extension("gathered");
        let status = Command::new(build.get_compiler().path())
            .args(["-r", "-nostdlib", "-T"])
            .args([script.as_path(), compiled])
            .arg("-o")
            .arg(&gathered)
            .status();
        if !status.as_ref().is_ok_and(|s| s.success()) {
            panic!("linking {}: {status:?}", compiled.display());
        }
        // whole or not there
        fs::rename(&gathered, object).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
    }

    /// The file and what it includes, and what that includes, with their texts.
    fn included(root: &Path, file: PathBuf, texts: &mut BTreeMap<PathBuf, String>) {
        if texts.contains_key(&file) {
            return;
        }
        let Ok(text) = fs::read_to_string(&file) else {
            return; // the compiler's own
        };
        texts.insert(file, text.clone());
        for line in text.lines() {
            if let Some(name) = line
                .trim()
                .strip_prefix("#include \"")
                .and_then(|n| n.split('"').next())
            {
                for dir in ["kernels", "kernels/emulator"] {
                    included(root, root.join(dir).join(name), texts);
                }
            }
        }
    }

    fn kernel_files(root: &Path) -> Vec<Kernels> {
        let shipped = files(&root.join("kernels"), "cu");
        let emulated_only = files(&root.join("kernels/emulator"), "cu");
        shipped
            .into_iter()
            .chain(emulated_only)
            .map(|source| {
                let stem = source
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let identifier = stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                assert!(
                    identifier,
                    "{}: name it by letters, digits and _",
                    source.display()
                );
                Kernels { stem, source }
            })
            .collect()
    }

    fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        files.sort();
        files
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
