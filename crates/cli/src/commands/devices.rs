//! `metastate devices`: the adapters of this machine and what each supports.
//!
//! Each device is described by a process of its own, because a driver that crashes takes its process with it.

use std::{
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rwkv7_core::device::{KernelCache, Support};
use serde_json::{Value, json};

use crate::{
    Outcome,
    cli::Devices,
    device::{self, NAMES},
    kernels,
};

use super::report;

/// How long a driver may take to be opened and to run a first kernel.
const LIMIT: Duration = Duration::from_secs(120);

/// Lists every device of each backend that is compiled in.
pub fn run(args: Devices) -> Outcome {
    if let Some(name) = args.describe {
        let device = device::open(Some(&name))?;
        let object = json!({
            "supports": Support::of(&device),
            "kernels": kernels_object(kernels::keep()),
        });
        report(true, object, String::new);
        return Ok(());
    }
    let cache = kernels::keep();
    let backends = NAMES.split(", ").map(|backend| (backend, names(backend)));
    let (mut compiled, mut missing, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    for (backend, names) in backends {
        match names {
            Err(device::DeviceError::NotCompiled { .. }) => missing.push(backend),
            Err(error) => {
                compiled.push(backend);
                devices.push((backend.to_string(), Err(error.to_string())));
            }
            Ok(names) => {
                compiled.push(backend);
                if names.is_empty() {
                    let error = "no adapter on this machine".to_string();
                    devices.push((backend.to_string(), Err(error)));
                }
                devices.extend(names.into_iter().map(|name| {
                    let found = describe(&name);
                    (name, found)
                }));
            }
        }
    }
    let list = devices.iter().map(|(name, found)| match found {
        Ok(support) => json!({ "device": name, "supports": support }),
        Err(error) => json!({ "device": name, "error": error }),
    });
    let object = json!({
        "compiled_in": compiled,
        "not_compiled_in": missing,
        "devices": list.collect::<Vec<_>>(),
        "kernels": kernels_object(cache),
    });
    report(args.json, object, || {
        let mut lines: Vec<String> = devices
            .iter()
            .flat_map(|(name, found)| lines(name, found))
            .collect();
        lines.push(format!("compiled in: {}", compiled.join(", ")));
        if let Some(first) = missing.first() {
            lines.push(format!(
                "not compiled in: {} (cargo build --release --features {first})",
                missing.join(", ")
            ));
        }
        lines.push(kernels_line(cache));
        lines.join("\n")
    });
    Ok(())
}

/// The names of a backend's devices, as `--device` takes them.
fn names(backend: &str) -> Result<Vec<String>, device::DeviceError> {
    let count = device::adapters(backend)?.len();
    Ok(match backend {
        "flex" => vec![backend.into()],
        _ => (0..count).map(|i| format!("{backend}:{i}")).collect(),
    })
}

/// What a device supports, or why that cannot be found out.
fn describe(name: &str) -> Result<Support, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(["devices", "--describe", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < LIMIT => thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "the driver did not answer within {} seconds; try another backend or a newer driver",
                    LIMIT.as_secs()
                ));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    if status.success() {
        return serde_json::from_str(&stdout)
            .and_then(|mut found: Value| serde_json::from_value(found["supports"].take()))
            .map_err(|error| error.to_string());
    }
    let said = |start: &str| {
        let line = stderr.lines().find(|line| line.starts_with(start));
        line.map(|line| line[start.len()..].to_string())
    };
    Err(said("error: device").map_or_else(
        || {
            let hardware = said(&format!("device {name}: "));
            let of = hardware
                .map(|hardware| format!(" of {hardware}"))
                .unwrap_or_default();
            format!(
                "the driver{of} ends the program ({status}); try another backend or a newer driver"
            )
        },
        |error| format!("device{error}"),
    ))
}

/// Reads a pipe to its end in a thread, so that no child waits for its reader.
fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is enough.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn text(reader: thread::JoinHandle<String>) -> String {
    reader.join().unwrap_or_default()
}

/// A device in a few lines.
fn lines(name: &str, found: &Result<Support, String>) -> Vec<String> {
    let support = match found {
        Ok(support) => support,
        Err(error) => return vec![format!("{name:10} {error}")],
    };
    let list = |items: &[String]| match items.is_empty() {
        true => "none".to_string(),
        false => items.join(", "),
    };
    let is_gpu = support.runtime != "flex";
    let mut lines = Vec::new();
    if is_gpu {
        lines.push(format!(
            "{name:10} {}, {}, {}",
            support.hardware, support.kind, support.runtime
        ));
        lines.push(format!(
            "memory {}, largest tensor {}",
            bytes(support.memory),
            bytes(support.largest_tensor)
        ));
    } else {
        lines.push(format!("{name:10} {}", support.hardware));
    }
    lines.push(format!("types beside f32: {}", list(&support.dtypes)));
    if is_gpu {
        lines.push(format!("matrix units: {}", list(&support.matrix_units)));
        lines.push(match support.plane {
            Some([least, most]) => format!("planes (warps, subgroups): {least} to {most} units"),
            None => "planes (warps, subgroups): none".into(),
        });
        let kept = match support.keeps_kernels {
            true => "can be kept for the next start",
            false => "compiled again at every start, from what the driver keeps",
        };
        lines.push(format!("compiled kernels: {kept}"));
    }
    let bf16 = if support.bf16_products { "yes" } else { "no" };
    lines.push(format!("matmul_precision=bf16: {bf16}"));
    lines.push(format!("recurrence: {}", support.recurrence));
    let indented = lines.iter().skip(1).map(|line| format!("{:10} {line}", ""));
    lines[..1].iter().cloned().chain(indented).collect()
}

/// `1.5 GiB`, or `unknown`.
fn bytes(count: Option<u64>) -> String {
    match count {
        None => "unknown".into(),
        Some(count) if count >= 1 << 30 => format!("{:.1} GiB", count as f64 / (1u64 << 30) as f64),
        Some(count) => format!("{} MiB", count >> 20),
    }
}

fn kernels_object(cache: &KernelCache) -> Value {
    match cache {
        KernelCache::Kept(file) => {
            json!({ "kept": true, "file": file, "bytes": kernels::size(file) })
        }
        KernelCache::NotKept(reason) => json!({ "kept": false, "reason": reason.to_string() }),
    }
}

fn kernels_line(cache: &KernelCache) -> String {
    match cache {
        KernelCache::Kept(file) => format!(
            "compiled kernels and tuning results are kept in {} ({})",
            file.display(),
            bytes(Some(kernels::size(file)))
        ),
        KernelCache::NotKept(reason) => format!("compiled kernels are not kept: {reason}"),
    }
}
