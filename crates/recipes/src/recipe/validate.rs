//! Which values a recipe may have.

use super::{Growth, LearningRate, Recipe, RecipeError, Task};

/// The largest dimension of a model.
const LARGEST_SIZE: usize = 1 << 30;

/// The largest number of sequences or tokens: counters and f64 hold it exactly.
const LARGEST_PRODUCT: f64 = 1e15;

impl Recipe {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Value`] names the key.
    pub fn validate(&self) -> Result<(), RecipeError> {
        self.check_paths()?;
        self.check_counts()?;
        self.check_products()?;
        self.check_task()?;
        self.check_learning_rate()?;
        self.check_growths()?;
        self.check_optimizer()
    }

    fn check_counts(&self) -> Result<(), RecipeError> {
        for (key, value) in [
            ("context", self.context),
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("steps", self.steps),
            ("steps_per_epoch", self.steps_per_epoch),
            ("validation_batches", self.validation_batches),
            ("keep_checkpoints", self.keep_checkpoints),
            ("scale_down", self.scale_down),
        ] {
            require(value > 0, key, &value, "at least 1")?;
        }
        require(
            self.max_digits >= 3,
            "max_digits",
            &self.max_digits,
            "at least 3, as shorter numbers are all seen in training",
        )
    }

    /// Numbers that are multiplied later stay within what a counter holds.
    fn check_products(&self) -> Result<(), RecipeError> {
        for (key, value) in self.model.sizes() {
            require(
                value <= LARGEST_SIZE,
                key,
                &value,
                "at most 1073741824, which is more than any model has",
            )?;
        }
        let counts = [
            ("steps", self.steps),
            ("steps_per_epoch", self.steps_per_epoch),
            ("accumulation", self.accumulation),
            ("batch_size", self.batch_size),
            ("validation_batches", self.validation_batches),
            ("context", self.context),
            ("max_digits", self.max_digits),
            (
                "learning_rate.warmup_steps",
                self.learning_rate.warmup_steps,
            ),
        ];
        for (key, count) in counts {
            require(fits(&[count]), key, &count, "at most 10^15")?;
        }
        let (batch, accumulation) = (self.batch_size, self.accumulation);
        let products = [
            ("steps", vec![self.steps, batch, accumulation]),
            ("steps_per_epoch", vec![self.steps_per_epoch, accumulation]),
            ("validation_batches", vec![self.validation_batches, batch]),
            ("context", vec![self.context, batch]),
            ("max_digits", vec![self.max_digits, batch]),
        ];
        for (key, factors) in products {
            require(
                fits(&factors),
                key,
                &factors[0],
                "so few that their product with batch_size and accumulation is at most 10^15",
            )?;
        }
        Ok(())
    }

    fn check_task(&self) -> Result<(), RecipeError> {
        match (self.task, self.data.first()) {
            (Task::Text, None) => {
                let expected = "files or folders with text: --data PATH";
                return wrong("data", &"empty", expected);
            }
            (Task::Reverse, Some(path)) => {
                return wrong(
                    "data",
                    &path.display(),
                    "none for the task `reverse`, which reads no text: --recipe text or shakespeare-char trains on one",
                );
            }
            _ => {}
        }
        require(
            self.task == Task::Text || self.tokenizer == "byte",
            "tokenizer",
            &self.tokenizer,
            "byte, which the task `reverse` is written in",
        )?;
        require(
            self.validation_fraction > 0.0 && self.validation_fraction < 1.0,
            "validation_fraction",
            &self.validation_fraction,
            "between 0 and 1",
        )
    }

    fn check_learning_rate(&self) -> Result<(), RecipeError> {
        let LearningRate {
            peak,
            r#final: last,
            warmup_steps,
        } = self.learning_rate;
        require(
            peak > 0.0 && peak <= 0.5,
            "learning_rate.peak",
            &peak,
            "more than 0 and at most 0.5, as the decay bias gets twice that",
        )?;
        require(
            last > 0.0 && last <= peak,
            "learning_rate.final",
            &last,
            "more than 0 and at most the peak",
        )?;
        require(
            warmup_steps < self.steps,
            "learning_rate.warmup_steps",
            &warmup_steps,
            "fewer than steps",
        )
    }

    fn check_growths(&self) -> Result<(), RecipeError> {
        let mut before = None;
        for Growth {
            after,
            old_rate,
            warmup_steps,
            ..
        } in &self.grow
        {
            let later = before.is_none_or(|before| before < *after);
            require(
                later && *after < self.steps && after.is_multiple_of(self.steps_per_epoch),
                "grow.after",
                after,
                "a multiple of steps_per_epoch, fewer than steps, and more than that of the growth before",
            )?;
            let known = (0.0..=1.0).contains(old_rate);
            require(known, "grow.old_rate", old_rate, "from 0 to 1")?;
            let short = fits(&[*warmup_steps]);
            require(short, "grow.warmup_steps", warmup_steps, "at most 10^15")?;
            before = Some(*after);
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<(), RecipeError> {
        let adam = &self.optimizer;
        for (key, beta) in [
            ("optimizer.beta_1", adam.beta_1),
            ("optimizer.beta_2", adam.beta_2),
        ] {
            let decays = (0.0..1.0).contains(&beta);
            require(decays, key, &beta, "at least 0 and less than 1")?;
        }
        let (epsilon, decay) = (adam.epsilon, adam.weight_decay);
        require(
            epsilon > 0.0 && epsilon.is_finite(),
            "optimizer.epsilon",
            &epsilon,
            "more than 0",
        )?;
        require(
            decay >= 0.0 && decay.is_finite(),
            "optimizer.weight_decay",
            &decay,
            "at least 0",
        )?;
        require(
            self.clip_norm > 0.0 && self.clip_norm.is_finite(),
            "clip_norm",
            &self.clip_norm,
            "more than 0",
        )
    }
}

/// Whether a product stays far below what a counter holds.
fn fits(factors: &[usize]) -> bool {
    let product: f64 = factors.iter().map(|factor| *factor as f64).product();
    product <= LARGEST_PRODUCT
}

fn require(
    allowed: bool,
    key: &'static str,
    found: &dyn ToString,
    expected: &'static str,
) -> Result<(), RecipeError> {
    match allowed {
        true => Ok(()),
        false => wrong(key, found, expected),
    }
}

fn wrong(
    key: &'static str,
    found: &dyn ToString,
    expected: &'static str,
) -> Result<(), RecipeError> {
    Err(RecipeError::Value {
        key,
        found: found.to_string(),
        expected,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named() {
        let mut recipe = Recipe::load("reverse").unwrap();
        recipe.batch_size = 0;
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "recipe: `batch_size` is 0, expected at least 1"
        );
        for setting in [
            "optimizer.beta_1=1",
            "optimizer.epsilon=0",
            "optimizer.weight_decay=-1",
            "batch_size=18446744073709551615",
            "steps=18446744073709551615",
            "context=18446744073709551615",
            "model.n_layer=18446744073709551615",
            "model.vocab_size=18446744073709551615",
            "model.decay_rank=18446744073709551615",
            "model.ffn_size=18446744073709551615",
        ] {
            let recipe = Recipe::load("reverse").unwrap();
            let recipe = recipe.with_overrides(&[setting.into()]).unwrap();
            let error = recipe.validate().unwrap_err().to_string();
            let key = setting.split('=').next().unwrap();
            assert!(error.contains(key), "{error}");
        }
    }
}
