# The commands of daily work. `just --list` shows them.

# What CI runs.
check:
    ./.ci/run

# The README's test command.
test:
    cargo test --workspace

# As many seeds of the simulation as wanted: `just sim SEEDS=10000`. Every seed that fails is printed.
sim seeds="SEEDS=1000":
    seeds='{{seeds}}'; ISLE_SIM_SEEDS="${seeds#SEEDS=}" cargo test --test simulation -- --nocapture

# The properties again, over other cases than CI's: `just properties 42`. The seed is printed.
properties seed=`date +%s`:
    @echo "PROPTEST_RNG_SEED={{seed}}"
    PROPTEST_RNG_SEED={{seed}} cargo test --release -p isle-model -p isle-proto -p isle-store

# As many random histories of the model as wanted, from a seed on: `just histories 10000 50000`.
histories from="8000" count="50000":
    ISLE_HISTORIES_FROM={{from}} ISLE_HISTORIES={{count}} cargo test --release -p isle-model --test history -- --nocapture

# New seeds for each planted bug, where CI replays recorded ones: `just mutants SEEDS=400`.
mutants seeds="SEEDS=400":
    seeds='{{seeds}}'; ISLE_SIM_SEEDS="${seeds#SEEDS=}" cargo test --test planted -- --ignored --nocapture planted

# Fuzzes one decoder for so many seconds, guided by coverage: `just fuzz delta 300`. fuzz/src/lib.rs lists them.
fuzz target seconds="60":
    fuzz/run {{target}} {{seconds}}

# Everything a machine room does to a region, for so long in all: `just torture --seconds 900`. One row a scenario.
torture *args="--seconds 900":
    cargo test --release --test torture -- {{args}}

# isle beside etcd, Redis, KeyDB and the floor, in alternating rounds: `just bench-peers --quick`. benches/README.md says how to read it.
bench-peers *args:
    benches/peers {{args}}

# Microbenchmarks of merge, codec, log, store and node: `just bench-micro merge`.
bench-micro *args:
    cargo bench -p isle-bench -- {{args}}

# Formats everything.
fmt:
    cargo fmt --all
