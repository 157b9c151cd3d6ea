//! The results of the finished runs, and their cost.

use std::{collections::BTreeMap, ops::Range, path::Path};

use super::{
    super::results::{Json, finished, mean_and_deviation, mean_by_step, validations},
    variants::{Arch, SCRATCH, STUDY, Variant},
};

/// The results of an architecture.
pub struct Table {
    pub arch: Arch,
    /// The variants with a finished run; the first is [`SCRATCH`].
    pub rows: Vec<Row>,
    /// Names of the others.
    pub missing: Vec<&'static str>,
}

/// The results of a variant's finished runs.
pub struct Row {
    pub variant: &'static Variant,
    pub seeds: usize,
    /// Of one run.
    pub cost: Cost,
    /// On the validation text, of the best epoch's model: mean and standard deviation.
    pub loss: (f64, Option<f64>),
    /// Mean validation loss right before and after each growth.
    pub growths: Vec<[f64; 2]>,
    /// Mean validation loss by step.
    pub losses: BTreeMap<u64, f64>,
}

/// The results of a run, as in [`Row`].
struct Finished {
    loss: f64,
    growths: Vec<[f64; 2]>,
    losses: BTreeMap<u64, f64>,
}

/// The cost of training, step by step.
#[derive(Debug, PartialEq)]
pub struct Cost {
    /// One for each model, in order.
    pub stages: Vec<Stage>,
    pub tokens_per_step: u64,
}

/// The training of a model between growths.
#[derive(Debug, PartialEq)]
pub struct Stage {
    pub steps: Range<u64>,
    /// Of training.
    pub flops_per_token: f64,
}

impl Table {
    /// Reads the finished runs; none where scratch has none, as nothing could be measured by it.
    pub fn read(out: &Path, arch: Arch) -> Result<Option<Self>, String> {
        let (mut rows, mut missing) = (vec![], vec![]);
        for variant in &STUDY.variants {
            match Row::read(&out.join(variant.folder(arch)), variant)? {
                Some(row) => rows.push(row),
                None if variant.name == SCRATCH => return Ok(None),
                None => missing.push(variant.name),
            }
        }
        Ok(Some(Self {
            arch,
            rows,
            missing,
        }))
    }

    pub fn scratch(&self) -> &Row {
        &self.rows[0]
    }

    /// Training FLOPs in units of those of a run from scratch.
    pub fn share(&self, flops: f64) -> f64 {
        let cost = &self.scratch().cost;
        flops / cost.flops(cost.steps())
    }
}

impl Row {
    fn read(folder: &Path, variant: &'static Variant) -> Result<Option<Self>, String> {
        let (mut costs, mut runs) = (vec![], vec![]);
        for path in finished(folder)? {
            let cost = Cost::read(&path)?;
            let steps = cost.stages.iter().map(|stage| length(&stage.steps));
            if !steps.eq(variant.steps.iter().copied())
                || costs.last().is_some_and(|last| *last != cost)
            {
                return Err(format!(
                    "{}: other steps, batches or models than the study has now, or than the seed before; remove the run that is out of date",
                    path.display()
                ));
            }
            costs.push(cost);
            runs.push(Finished::read(&path)?);
        }
        let Some(cost) = costs.pop() else {
            return Ok(None);
        };
        let mean = |what: &dyn Fn(&Finished) -> f64| {
            mean_and_deviation(&runs.iter().map(what).collect::<Vec<_>>())
        };
        let growths = 0..cost.stages.len() - 1;
        let losses: Vec<_> = runs.iter().map(|run| &run.losses).collect();
        Ok(Some(Self {
            variant,
            seeds: runs.len(),
            loss: mean(&|run| run.loss),
            growths: growths
                .map(|growth| [0, 1].map(|when| mean(&|run| run.growths[growth][when]).0))
                .collect(),
            losses: mean_by_step(&losses),
            cost,
        }))
    }

    /// The last validation loss.
    pub fn last_loss(&self) -> f64 {
        self.losses.values().last().copied().unwrap_or(f64::NAN)
    }

    /// The first step with a validation loss of at most this.
    pub fn first_reach(&self, target: f64) -> Option<u64> {
        let mut losses = self.losses.iter();
        losses.find_map(|(&step, &loss)| (loss <= target).then_some(step))
    }
}

impl Finished {
    fn read(folder: &Path) -> Result<Self, String> {
        let report = Json::read(folder.join("report.json"))?;
        let growths = (1..report.length("/stages")?).map(|stage| {
            let loss = |when| report.number(&format!("/stages/{stage}/loss_{when}"));
            Ok([loss("before")?, loss("after")?])
        });
        let validations = validations(folder)?;
        Ok(Self {
            loss: report.number("/text/loss")?,
            growths: growths.collect::<Result<_, String>>()?,
            losses: validations.iter().map(|v| (v.step, v.loss)).collect(),
        })
    }
}

impl Cost {
    fn read(folder: &Path) -> Result<Self, String> {
        let report = Json::read(folder.join("report.json"))?;
        let recipe = Json::read(folder.join("recipe.json"))?;
        let mut stages: Vec<Stage> = vec![];
        let mut end = recipe.number("/steps")? as u64;
        for stage in (0..report.length("/stages")?).rev() {
            let number = |key: &str| report.number(&format!("/stages/{stage}/{key}"));
            let start = number("from_step")? as u64;
            stages.push(Stage {
                steps: start..end,
                flops_per_token: number("flops_per_token")?,
            });
            end = start;
        }
        stages.reverse();
        let mut tokens_per_step = 1;
        for factor in ["/batch_size", "/context", "/accumulation"] {
            tokens_per_step *= recipe.number(factor)? as u64;
        }
        Ok(Self {
            stages,
            tokens_per_step,
        })
    }

    /// All steps.
    pub fn steps(&self) -> Range<u64> {
        0..self.stages.last().map_or(0, |stage| stage.steps.end)
    }

    /// Those of the last model until a step.
    pub fn last_model(&self, until: u64) -> Range<u64> {
        self.stages.last().map_or(0, |stage| stage.steps.start)..until
    }

    /// Tokens of these steps.
    pub fn tokens(&self, steps: Range<u64>) -> u64 {
        length(&steps) * self.tokens_per_step
    }

    /// Training FLOPs of these steps.
    pub fn flops(&self, steps: Range<u64>) -> f64 {
        let stages = self.stages.iter().map(|stage| {
            let (start, end) = (
                stage.steps.start.max(steps.start),
                stage.steps.end.min(steps.end),
            );
            self.tokens(start..end) as f64 * stage.flops_per_token
        });
        stages.sum()
    }
}

fn length(steps: &Range<u64>) -> u64 {
    steps.end.saturating_sub(steps.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_what_its_model_does() {
        let stages = [(0..500, 1.0), (500..800, 2.0), (800..1500, 4.0)];
        let stages = stages.map(|(steps, flops_per_token)| Stage {
            steps,
            flops_per_token,
        });
        let cost = Cost {
            stages: stages.into(),
            tokens_per_step: 10,
        };
        assert_eq!(cost.steps(), 0..1500);
        assert_eq!(cost.tokens(0..900), 9_000);
        assert_eq!(cost.flops(0..400), 4_000.0);
        assert_eq!(cost.flops(0..900), 5_000.0 + 6_000.0 + 4_000.0);
        assert_eq!(cost.flops(0..1500), 5_000.0 + 6_000.0 + 28_000.0);
        assert_eq!(cost.flops(cost.last_model(900)), 4_000.0);
        let before = cost.last_model(600);
        assert_eq!((cost.tokens(before.clone()), cost.flops(before)), (0, 0.0));
    }

    #[test]
    fn a_loss_is_reached_at_the_first_step_that_is_not_above_it() {
        let row = Row {
            variant: &STUDY.variants[0],
            seeds: 1,
            cost: Cost {
                stages: vec![],
                tokens_per_step: 10,
            },
            loss: (1.0, None),
            growths: vec![],
            losses: BTreeMap::from([(100, 2.0), (200, 1.5), (300, 1.6), (400, 1.5)]),
        };
        assert_eq!(row.first_reach(1.5), Some(200));
        assert_eq!(row.first_reach(1.4), None);
        assert_eq!(row.first_reach(row.last_loss()), Some(200));
    }
}
