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

# New seeds for each planted bug, where CI replays recorded ones: `just mutants SEEDS=400`.
mutants seeds="SEEDS=400":
    seeds='{{seeds}}'; ISLE_SIM_SEEDS="${seeds#SEEDS=}" cargo test --test planted -- --ignored --nocapture planted

# Fuzzes one decoder for so many seconds, guided by coverage: `just fuzz delta 300`. fuzz/src/lib.rs lists them.
fuzz target seconds="60":
    fuzz/run {{target}} {{seconds}}

# Everything a machine room does to a region, for so long in all: `just torture --seconds 900`. One row a scenario.
torture *args="--seconds 900":
    cargo test --release --test torture -- {{args}}

# Formats everything.
fmt:
    cargo fmt --all
