// Package localregistry starts a container registry for a test, and tells who pulled what from it.
//
//	func TestNodePulls(t *testing.T) {
//		reg := localregistry.Start(t, localregistry.Disk("images.erofs"))
//		pull(t, reg.Endpoint+"/test/hello:latest", reg.CAFile)
//		reg.AssertPulled("test/hello:latest")
//	}
//
// The registry is a virtual machine that serves a disk of `localregistry pack` ([Disk]), or a process of this machine that serves an OCI
// image layout ([Serve]). It ends with the test, also if that is killed. If the test has failed, its log has the pulls.
//
// The package starts the program `localregistry`: that of the option [Program], else that of the environment variable LOCALREGISTRY
// (a program or the folder of a release), else that in PATH.
package localregistry

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// grace is how long a registry may take to end. It lets transfers end for 10 s, and writes its events for 10 s.
	grace = 40 * time.Second
	// maxMessages is how many of the last bytes of standard error are shown.
	maxMessages = 16 << 10
)

// T is what this package needs of a test. [testing.TB] has it, and so has Ginkgo's GinkgoT().
type T interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Log(arguments ...any)
	Error(arguments ...any)
	Fatal(arguments ...any)
}

// Registry is a registry that serves. Its methods may be called from several goroutines.
type Registry struct {
	// URL is the registry's URL, such as "https://127.0.0.1:38807".
	URL string
	// Endpoint is its host and port, as they stand before the name of an image.
	Endpoint string
	// CA has the registry's CA and no other. It is nil if the registry serves without TLS.
	CA *x509.CertPool
	// CAFile is a PEM file with that CA. It is empty without TLS.
	CAFile string
	// TrustDir is the folder that `run --trust` writes: what every container runtime needs to trust the registry.
	TrustDir string
	// HostsDir is the part of it for containerd: a folder certs.d with hosts.toml, for config_path.
	HostsDir string
	// EventLog is the file to which the registry writes its events, one JSON object a line. It is gone when the registry has ended.
	EventLog string

	t       T
	process *process
}

// process is what all copies of a [Registry] share.
type process struct {
	program   string
	command   *exec.Cmd
	folder    string
	stdin     io.Closer
	messages  *os.File
	events    *os.File
	transport *http.Transport
	exited    chan struct{}
	end       sync.Once
	endError  error
}

// Start starts a registry and returns when it serves. It ends at the end of the test; if the test has failed then, the test's log has the
// pulls, and so has standard error a second before the time limit of `go test` ends everything. The test fails at once if the registry does not start, and at its end if the registry did not end well.
//
// Tests that share a registry are subtests of the one that starts it, and use [Registry.With]; or see [Open], for TestMain.
func Start(t T, options ...Option) *Registry {
	t.Helper()
	registry, err := Open(options...)
	if err != nil {
		t.Fatal(err)
		return nil
	}
	// The time limit of `go test` ends the process without a word about the test.
	limit := time.AfterFunc(untilLimit(t), func() {
		fmt.Fprintf(os.Stderr, "the test is at its time limit; %s\n", registry.PullLog())
	})
	t.Cleanup(func() {
		t.Helper()
		limit.Stop()
		err := registry.Close()
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(registry.PullLog())
		}
		registry.process.events.Close()
	})
	return registry.With(t)
}

// untilLimit is the time until a moment before the test's time limit.
func untilLimit(t T) time.Duration {
	if limited, is := t.(interface{ Deadline() (time.Time, bool) }); is {
		if deadline, is := limited.Deadline(); is {
			return time.Until(deadline) - time.Second
		}
	}
	return math.MaxInt64
}

// Open starts a registry without a test, such as in TestMain, and returns when it serves. [Registry.Close] ends it, and so does the end of
// this process. Methods that report to a test need [Registry.With].
func Open(options ...Option) (*Registry, error) {
	var config config
	for _, option := range options {
		option(&config)
	}
	program, err := find(config.program)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "localregistry-")
	if err != nil {
		return nil, fmt.Errorf("localregistry: cannot make a folder for the registry: %w", err)
	}
	registry := &Registry{
		TrustDir: filepath.Join(folder, "trust"),
		EventLog: filepath.Join(folder, "events.jsonl"),
	}
	registry.HostsDir = filepath.Join(registry.TrustDir, "containerd", "certs.d")
	if err := registry.start(program, folder, &config); err != nil {
		os.RemoveAll(folder)
		return nil, err
	}
	return registry, nil
}

// With returns the registry for another test, to which its methods then report: for subtests, and for a registry of [Open].
func (r *Registry) With(t T) *Registry {
	with := *r
	with.t = t
	return &with
}

func (r *Registry) start(program, folder string, config *config) error {
	words, err := config.words(folder)
	if err != nil {
		return err
	}
	p := &process{program: program, folder: folder, exited: make(chan struct{})}
	r.process = p
	// A file, as a pipe would be held open by what the program starts. It has no name, so that nothing is left of it.
	if p.messages, err = os.CreateTemp("", "localregistry-"); err != nil {
		return fmt.Errorf("localregistry: cannot make a file for messages: %w", err)
	}
	os.Remove(p.messages.Name())
	p.command = exec.Command(program, words...)
	p.command.Stderr = p.messages
	// Ctrl-C does not reach it: it ends with this process.
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The registry ends when this pipe is closed, and so when this process ends in any way.
	if p.stdin, err = p.command.StdinPipe(); err != nil {
		return fmt.Errorf("localregistry: %w", err)
	}
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return fmt.Errorf("localregistry: %w", err)
	}
	if err := p.command.Start(); err != nil {
		return fmt.Errorf("localregistry: cannot start the program: %w", err)
	}
	line, readError := bufio.NewReader(stdout).ReadBytes('\n')
	go func() {
		_ = p.command.Wait()
		close(p.exited)
	}()
	if readError != nil {
		// It has closed its standard output, and so it ends.
		p.stop()
		return p.failure("the registry did not start")
	}
	if err := r.ready(line, config); err != nil {
		p.stop()
		return err
	}
	return nil
}

// ready takes the line that the program prints when it serves.
func (r *Registry) ready(line []byte, config *config) error {
	var ready struct {
		Endpoint  string   // run
		Endpoints []string // serve
		CA        string
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		return fmt.Errorf("localregistry: %s printed %q, expected a JSON object: %w", r.process.program, line, err)
	}
	r.URL = ready.Endpoint
	if r.URL == "" && len(ready.Endpoints) > 0 {
		r.URL = ready.Endpoints[0]
	}
	_, endpoint, found := strings.Cut(r.URL, "://")
	if !found {
		return fmt.Errorf("localregistry: %s printed %q, expected the URL of a registry in it", r.process.program, line)
	}
	r.Endpoint, r.CAFile = endpoint, ready.CA
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{}}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return fmt.Errorf("localregistry: cannot read the CA: %w", err)
		}
		r.CA = x509.NewCertPool()
		if !r.CA.AppendCertsFromPEM(pem) {
			return fmt.Errorf("localregistry: %s has no certificate", r.CAFile)
		}
		transport.TLSClientConfig.RootCAs = r.CA
	}
	r.process.transport = transport
	events, err := os.Open(r.EventLog)
	if err != nil {
		return fmt.Errorf("localregistry: cannot read the events: %w", err)
	}
	r.process.events = events
	if config.layout == "" {
		return nil
	}
	// `run` has written these files already.
	words := []string{"trust", "--quiet", "--endpoint", r.URL, "--disk", config.layout, "--allow-missing", "--output", r.TrustDir}
	if r.CAFile != "" {
		words = append(words, "--ca", r.CAFile)
	}
	_, err = r.process.run(nil, words...)
	return err
}

// Client returns a client that trusts the registry's CA and no other. It uses no proxy.
func (r *Registry) Client() *http.Client {
	return &http.Client{Transport: r.process.transport}
}

// Close ends the registry. It returns an error if the registry had failed, or did not end well. [Start] calls it at the end of the test;
// a test may call it earlier. Events and assertions still work then.
func (r *Registry) Close() error {
	p := r.process
	p.end.Do(func() {
		select {
		case <-p.exited:
			p.endError = p.failure("the registry ended before the test")
		default:
			p.transport.CloseIdleConnections()
			if !p.stop() {
				p.endError = p.failure(fmt.Sprintf("the registry did not end within %v and was killed", grace))
			} else if !p.command.ProcessState.Success() {
				p.endError = p.failure("the registry did not end well")
			}
		}
		p.messages.Close()
		// The program has removed it, unless it was killed.
		os.RemoveAll(p.folder)
	})
	return p.endError
}

// stop ends the process, and returns false if it had to kill it.
func (p *process) stop() bool {
	p.stdin.Close()
	select {
	case <-p.exited:
		return true
	case <-time.After(grace):
		_ = p.command.Process.Kill()
		<-p.exited
		return false
	}
}

// failure describes the end of the process.
func (p *process) failure(what string) error {
	var said strings.Builder
	if info, err := p.messages.Stat(); err == nil {
		from := int64(0)
		if info.Size() > maxMessages {
			from = info.Size() - maxMessages
			said.WriteString("…")
		}
		_, _ = io.Copy(&said, io.NewSectionReader(p.messages, from, maxMessages))
	}
	return failed(what, p.command, said.String())
}

// failed describes a program that has ended, with its messages.
func failed(what string, command *exec.Cmd, said string) error {
	folder, _ := os.Getwd()
	return fmt.Errorf("localregistry: %s: %v\n%s\nThe command was, in %s:\n    %s",
		what, command.ProcessState, indented(said), folder, strings.Join(command.Args, " "))
}

func indented(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
}

// run runs another command of the program to its end, and returns its output.
func (p *process) run(stdin io.Reader, words ...string) ([]byte, error) {
	var output, said bytes.Buffer
	command := exec.Command(p.program, words...)
	command.Stdin, command.Stdout, command.Stderr = stdin, &output, &said
	err := command.Run()
	if command.ProcessState == nil {
		return nil, fmt.Errorf("localregistry: cannot start the program: %w", err)
	}
	if err != nil {
		return nil, failed("`localregistry "+words[0]+"` failed", command, said.String())
	}
	return output.Bytes(), nil
}
