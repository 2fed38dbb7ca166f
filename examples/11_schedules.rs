//! Lesson 11, learning rates over a run: every schedule as a picture, and the momentum of those
//! that cycle it.
//!
//! `cargo run --release --example 11_schedules [FOLDER]`

use std::path::PathBuf;

use cotangent::Result;
use cotangent::optim::{
    Anneal, Cyclic, CyclicMode, OneCycle, Plateau, Position, Schedule, ScheduleState, Unit,
};
use cotangent::train::files::create_dir;
use cotangent::train::{Plot, Series};

const EPOCHS: usize = 30;
/// Steps of an epoch.
const STEPS: usize = 20;
/// The optimizer's own learning rate.
const BASE: f64 = 0.1;

/// A validation loss that falls, stands still, falls once more and stands still for good.
fn loss(epoch: usize) -> f64 {
    match epoch {
        0..8 => 2.0 - 0.15 * epoch as f64,
        8..14 => 0.9,
        14..18 => 0.9 - 0.1 * (epoch - 13) as f64,
        _ => 0.5,
    }
}

/// The name of a picture, what it shows, and the schedule.
fn schedules() -> Vec<(&'static str, &'static str, Schedule)> {
    let by_epoch = Unit::Epoch;
    let cyclic = |mode, gamma| {
        Schedule::Cyclic(Cyclic {
            step_size_up: 3 * STEPS,
            mode,
            gamma,
            ..Cyclic::new(0.01, BASE)
        })
    };
    let one_cycle = |anneal_strategy, three_phase| {
        Schedule::OneCycle(OneCycle {
            anneal_strategy,
            three_phase,
            ..OneCycle::default()
        })
    };
    let cosine = Schedule::Cosine {
        t_max: EPOCHS - 5,
        eta_min: 0.0,
        unit: by_epoch,
    };
    vec![
        ("constant", "Constant", Schedule::Constant),
        (
            "step",
            "Step: times 0.5 every 6 epochs",
            Schedule::Step {
                step_size: 6,
                gamma: 0.5,
                unit: by_epoch,
            },
        ),
        (
            "multi_step",
            "Multi-step: times 0.3 after 8, 20 and 26 epochs",
            Schedule::MultiStep {
                milestones: vec![8, 20, 26],
                gamma: 0.3,
                unit: by_epoch,
            },
        ),
        (
            "exponential",
            "Exponential: times 0.9 every epoch",
            Schedule::Exponential {
                gamma: 0.9,
                unit: by_epoch,
            },
        ),
        (
            "polynomial",
            "Polynomial: the square of what is left, by steps",
            Schedule::Polynomial {
                total_iters: EPOCHS * STEPS,
                power: 2.0,
                unit: Unit::Step,
            },
        ),
        (
            "linear",
            "Linear: from a third up to all in 5 epochs",
            Schedule::Linear {
                start_factor: 1.0 / 3.0,
                end_factor: 1.0,
                total_iters: 5,
                unit: by_epoch,
            },
        ),
        (
            "cosine",
            "Cosine: half a wave over 25 epochs, and up again",
            cosine.clone(),
        ),
        (
            "cosine_warm_restarts",
            "Cosine with warm restarts: 4, 8, 16 epochs and so on",
            Schedule::CosineWarmRestarts {
                t_0: 4 * STEPS,
                t_mult: 2,
                eta_min: 0.0,
                unit: Unit::Step,
            },
        ),
        (
            "cyclic_triangular",
            "Cyclic, triangular",
            cyclic(CyclicMode::Triangular, 1.0),
        ),
        (
            "cyclic_triangular2",
            "Cyclic, triangular2: each cycle half as high",
            cyclic(CyclicMode::Triangular2, 1.0),
        ),
        (
            "cyclic_exp_range",
            "Cyclic, exp_range: 0.996 to the power of the step",
            cyclic(CyclicMode::ExpRange, 0.996),
        ),
        (
            "one_cycle",
            "One cycle, along cosines",
            one_cycle(Anneal::Cos, false),
        ),
        (
            "one_cycle_three_phase",
            "One cycle of three phases, straight",
            one_cycle(Anneal::Linear, true),
        ),
        (
            "plateau",
            "Plateau: times 0.5 after 3 epochs without a lower loss",
            Schedule::Plateau(Plateau {
                factor: 0.5,
                patience: 2,
                ..Plateau::default()
            }),
        ),
        (
            "warmup_cosine",
            "5 epochs of warm-up, then a cosine",
            Schedule::Warmup {
                start_factor: 0.01,
                end_factor: 1.0,
                total_iters: 5 * STEPS,
                unit: Unit::Step,
                then: Box::new(cosine),
            },
        ),
    ]
}

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1);
    let folder = folder.map_or("runs/schedules".into(), PathBuf::from);
    create_dir(&folder)?;
    for (name, title, schedule) in schedules() {
        schedule.validate()?;
        let mut state = ScheduleState::default();
        let (mut rates, mut momenta) = (Vec::new(), Vec::new());
        for step in 0..EPOCHS * STEPS {
            let at = Position {
                epoch: step / STEPS,
                step,
                total_epochs: EPOCHS,
                total_steps: EPOCHS * STEPS,
            };
            if step > 0 && step % STEPS == 0 {
                schedule.end_epoch(at, &mut state, loss(at.epoch - 1));
            }
            let x = step as f64;
            rates.push((x, schedule.learning_rate(BASE, at, &state)));
            momenta.extend(schedule.momentum(at).map(|m| (x, m)));
        }
        let (first, last) = (rates[0].1, rates[rates.len() - 1].1);
        println!("{name:22} from {first:.4} to {last:.4}: {title}");
        let draw = |file: &str, y_label, points| {
            let plot = Plot {
                title,
                x_label: "step",
                y_label,
                series: &[Series::line(y_label, points)],
            };
            plot.save(&folder, file)
        };
        if !momenta.is_empty() {
            draw(&format!("{name}_momentum"), "momentum", momenta)?;
        }
        draw(name, "learning rate", rates)?;
    }
    println!("\nwrote {}/*.svg and *.png", folder.display());
    Ok(())
}
