#!/usr/bin/env bash
# Makes the files of this folder. PROGRAM is `metastate` of commit e0889e7, the last one that wrote `second_half` and `products`:
#   PROGRAM=/path/to/metastate tests/compat/make.sh
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)

small=(--no-tui --device flex --set model.n_layer=1 --set model.n_embd=16 --set model.head_size=8 --set model.decay_rank=4
  --set model.in_context_rank=4 --set model.value_rank=4 --set model.gate_rank=4 --set batch_size=4 --set max_digits=4
  --set steps=4 --set steps_per_epoch=2 --set keep_checkpoints=1 --set validation_batches=1 --set learning_rate.warmup_steps=2
  --set products=f32)
"$PROGRAM" train "${small[@]}" --out "$work/rwkv7"
"$PROGRAM" train "${small[@]}" --set arch=meta-state --out "$work/run"

# A model of each format, and a training run that may go on.
"$PROGRAM" convert "$work/rwkv7" rwkv7.safetensors --dtype f16
"$PROGRAM" convert "$work/rwkv7" rwkv7.bpk --format burn --dtype f16
rm -rf run && mkdir -p run/checkpoints
cp "$work"/run/{recipe.json,config.json,metrics.jsonl,model.safetensors} run/
cp -r "$work/run/checkpoints/2" run/checkpoints/
cp "$work/run/start.json" run/ 2>/dev/null || true

# States, with the token that is read next, and without that token as yet earlier versions wrote them.
ask=(--prompt "123," --max-tokens 3 --temperature 0 --device flex)
"$PROGRAM" generate --model rwkv7.safetensors --tokenizer byte "${ask[@]}" --state-out rwkv7.state
"$PROGRAM" generate --model run "${ask[@]}" --state-out meta-state.state
python3 - <<'PY'
import json, struct

data = open("rwkv7.state", "rb").read()
(length,) = struct.unpack("<Q", data[:8])
header = json.loads(data[8 : 8 + length])
del header["__metadata__"]["metastate.unread"]
header = json.dumps(header, separators=(",", ":")).encode()
header += b" " * (-len(header) % 8)
open("rwkv7-without-token.state", "wb").write(struct.pack("<Q", len(header)) + header + data[8 + length :])
PY

# The old program's answers.
go_on=(--max-tokens 5 --temperature 0 --device flex --json)
logits() { "$PROGRAM" logits --model "$1" --tokens 0,49,50,44 --device flex --json; }
{
  echo '{'
  echo "\"rwkv7\": $(logits rwkv7.safetensors),"
  echo "\"meta-state\": $(logits run),"
  echo "\"rwkv7.state\": $("$PROGRAM" generate --model rwkv7.safetensors --tokenizer byte --state-in rwkv7.state "${go_on[@]}"),"
  echo "\"rwkv7-without-token.state\": $("$PROGRAM" generate --model rwkv7.safetensors --tokenizer byte --prompt 1 \
    --state-in rwkv7-without-token.state "${go_on[@]}"),"
  echo "\"meta-state.state\": $("$PROGRAM" generate --model run --state-in meta-state.state "${go_on[@]}")"
  echo '}'
} > expected.json
rm -r "$work"
