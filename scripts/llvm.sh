#!/usr/bin/env bash
# Lays out LLVM 23 where CubeCL's build looks for it, on machines that cannot reach the archive that the build would
# download: the features `cuda` and `cubecl-cpu` compile kernels with it.
#
#   export XDG_DATA_HOME="$HOME/.cache/interlingua/xdg"
#   scripts/llvm.sh
#   cargo build --release --features cuda        # with the same XDG_DATA_HOME
#
# LLVM comes as Debian's package llvm-23-dev from whatever Debian mirror apt is set up with; nothing is installed into
# the system. Needs apt-get, dpkg-deb, cc and ar, x86-64 Linux, and about 900 MB of disk.
set -euo pipefail

release=23.1.0-4 # the release of tracel-llvm-bundler in Cargo.lock
package=llvm-23-dev
data="${XDG_DATA_HOME:-$HOME/.local/share}"
prefix="$data/tracel/tracel-llvm-$release"
work="$data/tracel/debian-$package"
installed="$prefix/.tracel-llvm-installed" # the build looks for this file

fail() {
    printf 'llvm.sh: %s\n' "$1" >&2
    exit 1
}

if [[ -e $installed ]]; then
    printf 'LLVM is already in %s\n' "$prefix"
    exit 0
fi
[[ $(uname -sm) == "Linux x86_64" ]] || fail "only x86-64 Linux is supported; elsewhere let the build download LLVM"
for tool in apt-get dpkg-deb cc ar; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done
mkdir -p "$prefix/bin" "$prefix/lib" "$prefix/include" "$work/lists/partial" "$work/archives/partial"

# The package, from the unstable distribution, with package lists of its own so that the system's stay as they are.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/\?$' || true)
[[ -n $mirror ]] || fail "apt knows no Debian mirror; run apt-get update, or add one to its sources"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" "$@"
}
[[ -r $keyring ]] || fail "the package debian-archive-keyring is not installed; without it the download cannot be checked"
printf 'deb [signed-by=%s] %s sid main\n' "$keyring" "$mirror" >"$work/sources.list"
apt update || fail "apt could not read the package lists of $mirror. If the mirror signs with a key of its own, put it into $keyring"
(cd "$work" && apt download "$package" && dpkg-deb -x "$package"_*.deb root)
llvm="$work/root/usr/lib/llvm-23"

# Headers. Of the back ends only those for x86-64 (kernels on a CPU) and NVPTX (CUDA) stay: the rest would pull in
# libraries that nothing uses.
cp -r "$work/root/usr/include/llvm-23/llvm" "$work/root/usr/include/llvm-c-23/llvm-c" "$prefix/include/"
for list in "$prefix"/include/llvm/Config/*.def; do
    awk '!/^LLVM_[A-Z_]+\(/ || /\((X86|NVPTX)\)/' "$list" >"$list.kept"
    mv "$list.kept" "$list"
done

# Libraries: LLVM's own, less other back ends, tools and test helpers.
targets='AArch64|AMDGPU|ARC|ARM|AVR|BPF|CSKY|DirectX|Hexagon|Lanai|LoongArch|M68k|MSP430|Mips|PowerPC|RISCV|SPIRV|Sparc|SystemZ|VE|WebAssembly|XCore|Xtensa'
parts='AsmParser|CodeGen|Desc|Info|Disassembler|TargetMCA|Utils|Analysis'
helpers='BOLT.*|Exegesis.*|Testing.*|Debuginfod|LineEditor|Interpreter|WindowsManifest'
for library in "$llvm"/lib/libLLVM*.a; do
    name=$(basename "$library" .a)
    if [[ ! ${name#libLLVM} =~ ^(($targets)($parts)|$helpers)$ ]]; then
        ln -sf "$library" "$prefix/lib/"
    fi
done

# Debian's archives call the names that the C library of 2023 gave to scanf and strtol. They are forwarded here to the
# names that every C library has, so that the binary also starts on older systems.
cat >"$work/forward.c" <<'C'
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
long long __isoc23_strtoll(const char *text, char **end, int base) { return strtoll(text, end, base); }
unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }
int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int read = vsscanf(text, format, arguments);
    va_end(arguments);
    return read;
}
int __isoc23_scanf(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int read = vscanf(format, arguments);
    va_end(arguments);
    return read;
}
C
cc -O2 -fPIC -c "$work/forward.c" -o "$work/forward.o"
ar rcs "$prefix/lib/libforward_isoc23.a" "$work/forward.o"

# zstd as the linker wants it, also where only the library without its headers is installed.
zstd=$(find /usr/lib /lib -name 'libzstd.so.1' -print -quit)
[[ -n $zstd ]] || fail "libzstd is missing; install the package libzstd1"
ln -sf "$zstd" "$prefix/lib/libzstd.so"

# What the build asks for its flags.
cat >"$prefix/bin/llvm-config" <<CONFIG
#!/usr/bin/env bash
prefix="$prefix"
CONFIG
cat >>"$prefix/bin/llvm-config" <<'CONFIG'
for argument in "$@"; do
    case "$argument" in
    --libs | --libnames) for library in "$prefix"/lib/*.a; do name=$(basename "$library" .a); printf -- '-l%s ' "${name#lib}"; done; echo ;;
    --system-libs) echo "-lrt -ldl -lm -lz -lzstd" ;;
    --libdir) echo "$prefix/lib" ;;
    --includedir) echo "$prefix/include" ;;
    --cflags) echo "-I$prefix/include -D_GNU_SOURCE" ;;
    --cxxflags) echo "-I$prefix/include -std=c++17 -fno-exceptions -D_GNU_SOURCE -D__STDC_CONSTANT_MACROS -D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS" ;;
    --version) echo 23.1.0 ;;
    esac
done
CONFIG
chmod +x "$prefix/bin/llvm-config"
touch "$installed"
printf 'LLVM is in %s\n' "$prefix"
