//! Every example runs to its end.
#![allow(clippy::unwrap_used)]

#[path = "generate.rs"]
mod generate;
#[path = "grow.rs"]
mod grow;
#[path = "load_official.rs"]
mod load_official;
#[path = "own_layer.rs"]
mod own_layer;
#[path = "train_learner.rs"]
mod train_learner;
#[path = "train_loop.rs"]
mod train_loop;

#[test]
fn generate() {
    generate::main().unwrap();
}

#[test]
fn grow() {
    grow::main().unwrap();
}

#[test]
fn load_official() {
    load_official::main().unwrap();
}

#[test]
fn own_layer() {
    own_layer::main().unwrap();
}

#[test]
fn train_learner() {
    train_learner::main().unwrap();
}

#[test]
fn train_loop() {
    train_loop::main().unwrap();
}
