//! The results as Markdown.

use std::ops::Range;

use super::{
    super::page::{missing, table, thousands, with_deviation},
    plot,
    results::{Row, Table},
    variants::STUDY,
};

/// All tables.
pub fn markdown(tables: &[Table]) -> String {
    let mut page = String::from(
        "`cargo xtask growth --data input.txt --write-docs` trains the missing runs and writes this section. The recipe is `shakespeare-char`\n\
         with other sizes, steps and validations. Model A grows into B, and B grows into C. The variants from scratch train C alone.\n\
         Loss is the mean over seeds, and the standard deviation of the sample stands after ±. Compute is the floating-point operations of\n\
         training, in % of those of `scratch`.\n\n",
    );
    page += &table(
        &["model", "layers", "width", "feed-forward of RWKV-7"],
        STUDY.sizes.iter().map(|size| {
            let numbers = [size.layers, size.width, size.ffn_size].map(|n| n.to_string());
            [vec![size.name.to_string()], numbers.into()].concat()
        }),
    );
    page += "\n";
    page += &table(
        &["variant", ""],
        STUDY
            .variants
            .iter()
            .map(|variant| vec![variant.name.into(), variant.description.into()]),
    );
    for table in tables {
        page += &section(table);
    }
    page
}

fn section(results: &Table) -> String {
    let arch = results.arch.name();
    let growths = STUDY.sizes.windows(2);
    let growths: Vec<String> = growths
        .map(|pair| format!("{} to {}", pair[0].name, pair[1].name))
        .collect();
    let mut titles = vec![
        "variant",
        "seeds",
        "steps",
        "tokens",
        "compute, %",
        "loss, nats",
    ];
    titles.extend(growths.iter().map(String::as_str));
    let mut page = format!(
        "\n### `{arch}`\n\n\
         The loss is that of the best epoch's model on the whole validation text. The last columns have the loss of the validations right before and after each growth.\n\n{}{}",
        table(&titles, results.rows.iter().map(|row| cells(results, row))),
        missing(&results.missing)
    );
    page += &reached(results);
    page += &plot(results).image(&format!(
        "Validation loss of {arch} by training FLOPs, in units of those of scratch"
    ));
    page
}

/// A variant's line in the table of results.
fn cells(results: &Table, row: &Row) -> Vec<String> {
    let steps: Vec<String> = row.variant.steps.iter().map(u64::to_string).collect();
    let mut cells = vec![
        row.variant.name.to_string(),
        row.seeds.to_string(),
        steps.join(" + "),
        thousands(row.cost.tokens(row.cost.steps())),
        percent(results, row, row.cost.steps()),
        with_deviation(row.loss.0, row.loss.1, 4),
    ];
    cells.extend((1..STUDY.sizes.len()).map(|growth| {
        let losses = row.growths.get(growth - 1);
        losses.map_or(String::new(), |[before, after]| {
            format!("{before:.4} → {after:.4}")
        })
    }));
    cells
}

/// The table of the steps, tokens and compute at which a variant is as good as scratch.
fn reached(results: &Table) -> String {
    let target = results.scratch().last_loss();
    let last = STUDY.last_size();
    let tokens = format!("tokens of {}", last.name);
    let compute = format!("compute of {}, %", last.name);
    let rows = results.rows.iter().map(|row| {
        let name = row.variant.name.to_string();
        let Some(step) = row.first_reach(target) else {
            let mut cells = vec![name, "not reached".into()];
            cells.resize(6, String::new());
            return cells;
        };
        let [all, last] = [0..step, row.cost.last_model(step)];
        vec![
            name,
            step.to_string(),
            thousands(row.cost.tokens(all.clone())),
            percent(results, row, all),
            thousands(row.cost.tokens(last.clone())),
            percent(results, row, last),
        ]
    });
    format!(
        "\nThe validation loss is measured every 100 steps. A variant reaches `scratch` when the mean over seeds is at most {target:.4}, the last value of `scratch`:\n\n{}",
        table(
            &["variant", "step", "tokens", "compute, %", &tokens, &compute],
            rows
        )
    )
}

/// The training FLOPs of some steps, in % of those of scratch.
fn percent(results: &Table, row: &Row, steps: Range<u64>) -> String {
    format!("{:.1}", 100.0 * results.share(row.cost.flops(steps)))
}
