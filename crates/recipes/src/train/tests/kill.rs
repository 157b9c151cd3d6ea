//! Runs that are killed right before and after changes of the file system.

use std::{
    fs,
    process::{Command, Output},
};

use super::*;
use crate::atomic;

/// The folder of the run of [`a_run_that_may_be_killed`].
const OUT: &str = "METASTATE_TEST_OUT";

/// How many places the run is killed at; all of them where the number is large.
const KILLS: &str = "METASTATE_KILLS";

fn growing() -> Recipe {
    let grow = r#"grow=[{"after":4,"to":{"n_embd":48}}]"#;
    recipe(&[
        grow,
        "accumulation=2",
        "steps=6",
        "steps_per_epoch=2",
        "validation_batches=1",
        "batch_size=2",
        "keep_checkpoints=1",
    ])
}

/// In a process of its own, which the other test starts.
#[test]
#[ignore = "a part of a_killed_run_goes_on_to_the_same_end_wherever_it_was_killed"]
fn a_run_that_may_be_killed() {
    let Some(out) = std::env::var_os(OUT) else {
        skipped(&"METASTATE_TEST_OUT is not set; the other test of this file sets it");
        return;
    };
    let out = Path::new(&out);
    run(&growing(), out, out.join("recipe.json").exists()).unwrap();
    println!("points {}", atomic::points_passed());
}

/// Starts or goes on with the run in `out`, which ends at a point, if one is given.
fn process(out: &Path, abort_at: Option<usize>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "train::tests::kill::a_run_that_may_be_killed"])
        .args(["--ignored", "--nocapture"])
        .env(OUT, out)
        .env_remove("METASTATE_ABORT_AT");
    if let Some(point) = abort_at {
        command.env("METASTATE_ABORT_AT", point.to_string());
    }
    command.output().unwrap()
}

/// Every file and folder below `folder` that looks unfinished.
fn unfinished(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().contains("incomplete") {
            found.push(entry.path());
        } else if entry.path().is_dir() {
            found.extend(unfinished(&entry.path()));
        }
    }
    found
}

#[test]
fn a_killed_run_goes_on_to_the_same_end_wherever_it_was_killed() {
    if !cfg!(debug_assertions) {
        skipped(&"a program without debug assertions cannot be ended at a chosen place");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let output = process(&whole, None);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{printed}{errors}");
    let points = printed
        .lines()
        .find_map(|line| line.split("points ").nth(1));
    let points: usize = points.unwrap().trim().parse().unwrap();
    assert!(points > 50, "{points}");

    let kills = std::env::var(KILLS).map_or(6, |kills| kills.parse().unwrap());
    assert!(kills > 0, "{KILLS} is 0");
    let kills: usize = std::cmp::min(kills, points);
    for kill in 0..kills {
        let point = 1 + kill * points / kills + points / kills / 2;
        let out = folder.path().join(point.to_string());
        let killed = process(&out, Some(point));
        assert!(!killed.status.success(), "point {point} was not reached");
        // Once more while it goes on.
        process(&out, Some(1 + point / 3));
        let output = process(&out, None);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "point {point}: {errors}");
        assert_eq!(lines(&out), lines(&whole), "point {point}");
        assert!(
            tensors(&out) == tensors(&whole),
            "point {point}: another model"
        );
        assert_eq!(
            unfinished(&out),
            Vec::<std::path::PathBuf>::new(),
            "point {point}"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}
