//! Files as `torch.save` writes them, made without torch: archives, the older single pickle, and tensors that are views.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

use burn::tensor::TensorData;

/// A tensor in f32 that is a view of a storage.
pub struct View {
    pub name: String,
    pub storage: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

/// Storages of f32, and tensors that are views of them.
#[derive(Default)]
pub struct File {
    pub storages: Vec<Vec<f32>>,
    pub views: Vec<View>,
}

/// Strides of a tensor whose values stand one after another.
pub fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

impl File {
    /// Every tensor has a storage of its own.
    pub fn separate(tensors: &BTreeMap<String, TensorData>) -> Self {
        let mut file = Self::default();
        for (name, data) in tensors {
            file.add(name, data, file.storages.len());
        }
        file
    }

    /// All tensors are views of one storage.
    pub fn together(tensors: &BTreeMap<String, TensorData>) -> Self {
        let mut file = Self::default();
        for (name, data) in tensors {
            file.add(name, data, 0);
        }
        file
    }

    fn add(&mut self, name: &str, data: &TensorData, storage: usize) {
        if storage == self.storages.len() {
            self.storages.push(Vec::new());
        }
        let values = &mut self.storages[storage];
        let shape = data.shape().to_vec();
        self.views.push(View {
            name: name.into(),
            storage,
            offset: values.len(),
            stride: contiguous(&shape),
            shape,
        });
        values.extend(data.iter::<f32>());
    }

    /// The archive of `torch.save`.
    pub fn archive(&self) -> Vec<u8> {
        let mut entries = vec![
            ("archive/data.pkl".to_string(), self.pickle(false)),
            ("archive/byteorder".to_string(), b"little".to_vec()),
            ("archive/version".to_string(), b"3\n".to_vec()),
        ];
        for (key, values) in self.storages.iter().enumerate() {
            entries.push((format!("archive/data/{key}"), bytes(values)));
        }
        zip(&entries)
    }

    /// The file of `torch.save` before version 1.6.
    pub fn legacy(&self) -> Vec<u8> {
        let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
        out.extend(b"\x80\x02M\xe9\x03.");
        out.extend(b"\x80\x02}(");
        text(&mut out, "protocol_version");
        out.extend(b"M\xe9\x03");
        text(&mut out, "little_endian");
        out.extend(b"\x88u.");
        out.extend(self.pickle(true));
        out.extend(b"\x80\x02](");
        for key in 0..self.storages.len() {
            text(&mut out, &key.to_string());
        }
        out.extend(b"e.");
        for values in &self.storages {
            out.extend((values.len() as i64).to_le_bytes());
            out.extend(bytes(values));
        }
        out
    }

    fn pickle(&self, legacy: bool) -> Vec<u8> {
        let mut out = b"\x80\x02}(".to_vec();
        for view in &self.views {
            text(&mut out, &view.name);
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(&mut out, "storage");
            out.extend(b"ctorch\nFloatStorage\n");
            text(&mut out, &view.storage.to_string());
            text(&mut out, "cpu");
            let values = self.storages.get(view.storage).map_or(0, Vec::len);
            number(&mut out, values);
            if legacy {
                out.push(b'N');
            }
            out.extend(b"tQ");
            number(&mut out, view.offset);
            for list in [&view.shape, &view.stride] {
                out.push(b'(');
                list.iter().for_each(|&n| number(&mut out, n));
                out.push(b't');
            }
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
        out.extend(b"u.");
        out
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, number: usize) {
    out.extend(b"\x8a\x08");
    out.extend((number as i64).to_le_bytes());
}

/// An archive whose entries are stored as they are.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in entries {
        let offset = out.len() as u32;
        let mut common = Vec::new();
        common.extend(b"\x14\0\0\0\0\0\0\0\x21\0");
        common.extend(crc32fast::hash(content).to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend(0_u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(content);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}
