package localregistry

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Option is an option of [Start] and [Open].
type Option func(*config)

type config struct {
	program string
	disks   []string
	layout  string
	// machine has the options that only a machine takes, and common those that serve takes, too.
	machine, common, arguments []string
}

// Disk serves a disk that `localregistry pack` made, from a virtual machine. Several disks are served as one registry. A path is relative to
// the folder of the test, as `go test` runs tests in that.
func Disk(path string) Option {
	return func(c *config) { c.disks = append(c.disks, path) }
}

// Serve serves an OCI image layout from this machine, in place of a disk from a virtual machine: faster, and on the loopback only.
func Serve(layout string) Option {
	return func(c *config) { c.layout = layout }
}

// Program names the program, or the folder of a release, in place of LOCALREGISTRY and PATH.
func Program(path string) Option {
	return func(c *config) { c.program = path }
}

// Net puts the machine into a network, as `run --net` does, such as "bridge=br0,ip=10.1.0.82/16". Several add an interface each. By default
// a free port of 127.0.0.1 is forwarded to the machine.
func Net(network string) Option {
	return func(c *config) { c.machine = append(c.machine, "--net", network) }
}

// Memory gives the machine that many MiB.
func Memory(mebibytes int) Option {
	return func(c *config) { c.machine = append(c.machine, "--memory", strconv.Itoa(mebibytes)) }
}

// BootTimeout is how long the machine may take to serve, in whole seconds. The default is that of `run --timeout`.
func BootTimeout(timeout time.Duration) Option {
	seconds := strconv.FormatInt(int64((timeout+time.Second-1)/time.Second), 10)
	return func(c *config) { c.machine = append(c.machine, "--timeout", seconds) }
}

// Name is a further DNS name or IP address by which clients reach the registry, for its certificate.
func Name(name string) Option {
	return func(c *config) { c.common = append(c.common, "--san", name) }
}

// FaultPlan puts the plan of faults in a file in force before the first request. See [Registry.Faults] for later changes.
func FaultPlan(path string) Option {
	return func(c *config) { c.common = append(c.common, "--faults", path) }
}

// Args adds arguments of `localregistry run`, or of `localregistry serve` with [Serve].
func Args(arguments ...string) Option {
	return func(c *config) { c.arguments = append(c.arguments, arguments...) }
}

// words are the arguments of the program that serves, with its files in the folder.
func (c *config) words(folder string) ([]string, error) {
	in := func(name string) string { return filepath.Join(folder, name) }
	var words []string
	switch {
	case c.layout == "" && len(c.disks) == 0:
		return nil, errors.New("localregistry: there is nothing to serve: the option Disk or Serve is missing")
	case c.layout != "" && len(c.disks) > 0:
		return nil, errors.New("localregistry: the options Disk and Serve exclude each other: a machine serves disks, and this machine a layout")
	case c.layout != "" && len(c.machine) > 0:
		return nil, fmt.Errorf("localregistry: there is no machine with the option Serve, so it takes no %s", c.machine[0])
	case c.layout != "":
		words = append([]string{"serve", c.layout, "--control", in("control")}, c.common...)
		if !has(c.arguments, "--listen") {
			words = append(words, "--listen", "127.0.0.1:0")
		}
		if !has(c.arguments, "--tls") && !has(c.arguments, "--ca-out") {
			words = append(words, "--ca-out", in("ca.crt"))
		}
	default:
		words = append([]string{"run"}, c.disks...)
		words = append(append(words, c.machine...), c.common...)
		if !has(c.arguments, "--trust") {
			words = append(words, "--trust", in("trust"))
		}
	}
	words = append(words, "--json", "--quiet", "--end-with-stdin", "--run-dir", folder, "--events", in("events.jsonl"))
	return append(words, c.arguments...), nil
}

// has tells whether the option is among the arguments.
func has(arguments []string, option string) bool {
	for _, argument := range arguments {
		if argument == option || strings.HasPrefix(argument, option+"=") {
			return true
		}
	}
	return false
}

// find finds the program.
func find(option string) (string, error) {
	const name, variable = "localregistry", "LOCALREGISTRY"
	for _, chosen := range []struct{ by, path string }{{"the option Program", option}, {"the environment variable " + variable, os.Getenv(variable)}} {
		if chosen.path == "" {
			continue
		}
		looked := []string{chosen.path, filepath.Join(chosen.path, "bin", name), filepath.Join(chosen.path, name)}
		for index, path := range looked {
			looked[index], _ = filepath.Abs(path)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return looked[index], nil
			}
		}
		return "", fmt.Errorf("localregistry: %s is %q, where there is no program, nor a release with one. Looked at:\n%s",
			chosen.by, chosen.path, indented(strings.Join(looked, "\n")))
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("localregistry: there is no program %s. Looked at:\n%s\nSet %s to the program or to the folder of a release, or add its folder bin to PATH", name, indented(
		"the option Program: not given\nthe environment variable "+variable+": not set\nPATH: "+os.Getenv("PATH")), variable)
}
