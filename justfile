# The tasks of this workspace, each one cargo command. `just` lists them.

export CARGO_TARGET_DIR := env("CARGO_TARGET_DIR", env("XDG_CACHE_HOME", env("HOME") / ".cache") / "interlingua/target")

# list the tasks
default:
    @just --list

# everything that must pass before a change goes in
ci:
    .ci/run

# build the binary
build:
    cargo build --release

# all tests, or those whose name contains FILTER
test *FILTER:
    cargo test --release --workspace -- {{ FILTER }}

# format and lint
lint:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets -- -D warnings

# the API documentation
docs:
    cargo doc --release --workspace --no-deps --open

# the quickstart of the README
quickstart:
    cargo run --release -- train recipes/quickstart.toml
