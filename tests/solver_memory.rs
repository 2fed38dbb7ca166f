//! A Solver's memory is steady: no step leaves a buffer behind. Alone in its process, since the
//! allocator's counters are the process's own.

use std::sync::{Arc, Mutex};

use cotangent::autograd::is_grad_enabled;
use cotangent::data::{Augment, Normalize, synthetic};
use cotangent::nn::{Mode, Module, Visitor};
use cotangent::random::Generator;
use cotangent::storage::memory_stats;
use cotangent::train::softmax_loss;
use cotangent::train::{Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{DType, Result, Tensor};

struct Linear(Tensor, Tensor);

impl Module for Linear {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.flatten(1)?.linear(&self.0, Some(&self.1))
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.0);
        v.parameter("bias", &mut self.1);
    }
    fn describe(&self) -> String {
        "Linear()".into()
    }
}

#[test]
fn live_buffers_are_the_same_at_every_step() {
    let train = synthetic(0, 0, 80);
    let data = SolverData {
        normalize: Normalize::mean_image(&train).unwrap(),
        val: synthetic(0, 500, 20),
        train,
        augment: Augment::none(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        reg: 0.1,
        batch_size: 10,
        num_epochs: 5,
        verbose: false,
        ..SolverConfig::default()
    };
    let weight = Tensor::randn([10, 3072], &mut Generator::new(0), DType::F32).unwrap();
    let bias = Tensor::zeros([10], DType::F32).unwrap();
    let mut model = Linear(weight.requires_grad(), bias.requires_grad());
    let live = Arc::new(Mutex::new(Vec::new()));
    let (seen, softmax) = (live.clone(), softmax_loss(0.0));
    let mut solver = Solver::new(&mut model, data, config)
        .unwrap()
        .with_loss(Arc::new(move |scores, labels| {
            // validation's are no steps
            if is_grad_enabled() {
                let stats = memory_stats();
                seen.lock().unwrap().push((stats.live, stats.live_bytes));
            }
            softmax(scores, labels)
        }));
    solver.train().unwrap();
    let best_epoch = solver.history().best_epoch;
    let live = live.lock().unwrap();
    assert_eq!(live.len(), 40);
    // the parameters kept of the best epoch take their place once, after the first epoch; while
    // they are still the model's own, at an epoch's first step, there is less
    let most = live[9];
    for (i, &now) in live.iter().enumerate().skip(9) {
        assert!(now <= most, "step {i}: {now:?}, after step 9 {most:?}");
        assert!(now == most || i % 8 == 0, "step {i}: {now:?}");
    }
    assert!(best_epoch >= 1);
}
