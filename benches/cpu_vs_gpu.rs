//! The example of the same name as a benchmark: one training on the CPU and on a CUDA device.

#[path = "../examples/cpu_vs_gpu.rs"]
mod example;

fn main() {
    example::main();
}
