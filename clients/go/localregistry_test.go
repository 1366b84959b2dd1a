package localregistry_test

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"localregistry"
)

const (
	image    = "test/hello:latest"
	manifest = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
	// hangs is the environment variable with the sample of another process, in which [TestHangs] hangs.
	hangs = "LOCALREGISTRY_TEST_HANGS"
	slow  = `{"rules": [{"id": "busy", "match": {"endpoint": "manifest"}, "do": {"status": 503}}]}`
)

// sample is a folder with a layout `sample` and a disk `sample.erofs`, which holds the same image.
var sample string

func TestMain(m *testing.M) {
	if sample = os.Getenv(hangs); sample != "" {
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		folder, err := os.MkdirTemp("", "localregistry-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(folder)
		sample = folder
		for _, words := range []string{"sample -o sample", "pack sample -o sample.erofs"} {
			command := exec.Command(program(), strings.Fields("--quiet "+words)...)
			command.Dir, command.Stderr = folder, os.Stderr
			if err := command.Run(); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

func program() string {
	if set := os.Getenv("LOCALREGISTRY"); set != "" {
		return set
	}
	return "localregistry"
}

func in(name string) string { return filepath.Join(sample, name) }

// get gets a path and returns the status.
func get(t testing.TB, reg *localregistry.Registry, path string) int {
	t.Helper()
	request, err := http.NewRequest("GET", reg.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", manifest)
	response, err := reg.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func pull(t testing.TB, reg *localregistry.Registry) int {
	t.Helper()
	return get(t, reg, "/v2/test/hello/manifests/latest")
}

// recorder is a test that may fail.
type recorder struct {
	said     []string
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper()               {}
func (r *recorder) Cleanup(do func())     { r.cleanups = append(r.cleanups, do) }
func (r *recorder) Failed() bool          { return r.failed }
func (r *recorder) Log(words ...any)      { r.said = append(r.said, fmt.Sprint(words...)) }
func (r *recorder) Error(words ...any)    { r.failed = true; r.Log(words...) }
func (r *recorder) Fatal(words ...any)    { r.Error(words...); runtime.Goexit() }
func (r *recorder) has(words string) bool { return strings.Contains(strings.Join(r.said, "\n"), words) }

// run runs a test to its end, and returns what it said.
func run(test func(*recorder)) *recorder {
	r := &recorder{}
	var ended sync.WaitGroup
	ended.Add(1)
	go func() {
		defer ended.Done()
		defer func() {
			for _, cleanup := range r.cleanups {
				cleanup()
			}
		}()
		test(r)
	}()
	ended.Wait()
	return r
}

// served asserts what a registry of the sample does, of whatever kind.
func served(t *testing.T, reg *localregistry.Registry) {
	if !strings.HasPrefix(reg.URL, "https://127.0.0.1:") || reg.URL != "https://"+reg.Endpoint {
		t.Fatal(reg.URL, reg.Endpoint)
	}
	// The CA is trusted, and only by those who have it.
	if _, err := http.Get(reg.URL + "/v2/"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
	if status := pull(t, reg); status != 200 {
		t.Error(status)
	}
	for _, file := range []string{reg.CAFile, filepath.Join(reg.HostsDir, reg.Endpoint, "hosts.toml"), filepath.Join(reg.TrustDir, "images.txt"), reg.EventLog} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	reg.AssertPulled(image)
	reg.AssertPulled(reg.Endpoint+"/"+image, localregistry.Times(1))
	reg.AssertNotPulled("test/other:1", localregistry.Wait(0))
	if reg.Client() == nil || get(t, reg, "/v2/test/none/manifests/1") != 404 {
		t.Error("an image that is not there")
	}

	failed := run(func(r *recorder) {
		reg := reg.With(r)
		reg.AssertPulled(image, localregistry.Times(2), localregistry.Wait(0))
		reg.AssertPulled(image, localregistry.AtLeast(2), localregistry.Wait(0))
		reg.AssertPulled(image, localregistry.AtMost(0))
		reg.AssertNotPulled(image, localregistry.By("192.0.2.1"))
		reg.AssertNotPulled(image)
		reg.AssertPulled("No/Name")
		reg.AssertFault("none", localregistry.Wait(0))
		reg.Faults().Add(`{"rules": [{"id": "nothing"}]}`)
		r.Log("not reached")
	})
	expected := []string{
		image + " was pulled once; it was expected to be pulled 2 times",
		image + " was pulled once; it was expected to be pulled at least 2 times",
		image + " was pulled once; it was expected to be pulled at most 0 times",
		image + " was pulled once; it was expected not to be pulled",
		"invalid value 'No/Name' for '--pulled <REF>'",
		"the log has no plan of faults, and so no rule none",
		"rule nothing: do: it does nothing",
	}
	if len(failed.said) != len(expected) {
		t.Fatal(failed.said)
	}
	for index, words := range expected {
		if !strings.Contains(failed.said[index], words) {
			t.Errorf("%s is not in %s", words, failed.said[index])
		}
	}

	faults := reg.Faults()
	if rules := faults.Add(slow); len(rules) != 1 || rules[0].ID != "busy" {
		t.Error(rules)
	}
	if status := pull(t, reg); status != 503 {
		t.Error(status)
	}
	reg.AssertFault("busy", localregistry.Times(1))
	if rules := faults.List(); len(rules) != 1 || rules[0].Hits != 1 || !strings.Contains(rules[0].Rule, "503") {
		t.Error(rules)
	}
	faults.Reset()
	if rules := faults.Replace(strings.Replace(slow, "busy", "busier", 1)); rules[0].ID != "busier" || faults.List()[0].Hits != 0 {
		t.Error(rules)
	}
	faults.Remove("busier")
	faults.Add(slow)
	if rules := faults.Clear(); len(rules) != 1 || len(faults.List()) != 0 || pull(t, reg) != 200 {
		t.Error(rules)
	}
	reg.AssertPulled(image, localregistry.Times(2))

	var of503 *localregistry.Request
	for _, request := range reg.Requests() {
		if request := request; request.Status == 503 {
			of503 = &request
		}
	}
	if of503 == nil || of503.Fault != "busy" || of503.OK() || !of503.By().IsValid() || of503.Reference != "latest" || of503.Time.Year() < 2020 {
		t.Errorf("%+v", of503)
	}
	pulls := reg.Pulls()
	if len(pulls) != 4 || !pulls[0].OK() || pulls[0].Repository != "test/hello" || pulls[0].Bytes == 0 || pulls[1].Status != 404 || pulls[2].Status != 503 {
		t.Errorf("%+v", pulls)
	}
	kinds := map[string]int{}
	for _, event := range reg.Events() {
		kinds[event.Kind]++
		if event.Fault != nil && (event.Fault.Rule != "busy" || event.Fault.Match != 1) {
			t.Errorf("%+v", event.Fault)
		}
	}
	if kinds["fault"] != 1 || kinds["faultsChanged"] == 0 || kinds["warning"] == 0 {
		t.Error(kinds)
	}
}

// gone asserts that nothing is left of a registry.
func gone(t *testing.T, reg *localregistry.Registry) {
	t.Helper()
	if _, err := os.Stat(filepath.Dir(reg.EventLog)); !os.IsNotExist(err) {
		t.Error(err)
	}
	if _, err := reg.Client().Get(reg.URL + "/v2/"); err == nil {
		t.Error("the registry still answers")
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	var reg *localregistry.Registry
	t.Run("serves", func(t *testing.T) {
		reg = localregistry.Start(t, localregistry.Disk(in("sample.erofs")), localregistry.Memory(192), localregistry.Name("registry.test"))
		served(t, reg)
		t.Run("subtests share it", func(t *testing.T) {
			reg.With(t).AssertPulled(image)
		})
	})
	gone(t, reg)
}

func TestLayout(t *testing.T) {
	t.Parallel()
	var reg *localregistry.Registry
	failed := run(func(r *recorder) {
		reg = localregistry.Start(r, localregistry.Serve(in("sample")), localregistry.Name("registry.test"))
		served(t, reg.With(t))
		if r.failed {
			t.Error(r.said)
		}
		r.Error("the test fails")
	})
	if !failed.has("the pulls from "+reg.URL) || !failed.has(image) || !failed.has("   503 ") {
		t.Error(failed.said)
	}
	gone(t, reg)
}

func TestManyAtOnce(t *testing.T) {
	for number := 0; number < 8; number++ {
		t.Run(strconv.Itoa(number), func(t *testing.T) {
			t.Parallel()
			reg := localregistry.Start(t, localregistry.Serve(in("sample")), localregistry.Args("--tls", "off"))
			if reg.CA != nil || reg.CAFile != "" || pull(t, reg) != 200 {
				t.Error(reg.URL)
			}
			reg.AssertPulled(image, localregistry.Times(1))
		})
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	reg, err := localregistry.Open(localregistry.Serve(in("sample")))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(reg.PullLog(), "no client has asked") {
		t.Error(reg.PullLog())
	}
	pull(t, reg)
	for range [2]int{} {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	}
	gone(t, reg)
	// The log is whole, and still there for assertions.
	reg.With(t).AssertPulled(image, localregistry.Times(1))
	reg.With(t).AssertNotPulled("test/other:1")
	defer func() {
		if said := fmt.Sprint(recover()); !strings.Contains(said, "With(t)") {
			t.Error(said)
		}
	}()
	reg.AssertPulled(image)
}

func TestErrors(t *testing.T) {
	damaged := in("damaged.erofs")
	if err := os.WriteFile(damaged, []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for _, one := range []struct {
		options  []localregistry.Option
		expected []string
	}{
		{nil, []string{"there is nothing to serve: the option Disk or Serve is missing"}},
		{[]localregistry.Option{localregistry.Disk("a"), localregistry.Serve("b")}, []string{"exclude each other"}},
		{[]localregistry.Option{localregistry.Serve("b"), localregistry.Memory(1)}, []string{"no machine with the option Serve, so it takes no --memory"}},
		{[]localregistry.Option{localregistry.Disk("none.erofs")}, []string{"the registry did not start: exit status 9", "cannot read the disk none.erofs: No such file", "The command was, in ", "run none.erofs --trust "}},
		{[]localregistry.Option{localregistry.Disk(damaged)}, []string{"exit status 9", damaged}},
		{[]localregistry.Option{localregistry.Serve(damaged)}, []string{"exit status 1", "is a file, expected the folder of an OCI image layout"}},
		{[]localregistry.Option{localregistry.Disk(in("sample.erofs")), localregistry.Args("--flag")}, []string{"exit status 2", "unexpected argument '--flag'"}},
		{[]localregistry.Option{localregistry.Disk("a"), localregistry.Program(folder)}, []string{"the option Program is \"" + folder + "\"", folder + "/bin/localregistry\n"}},
	} {
		started := false
		failed := run(func(r *recorder) {
			localregistry.Start(r, one.options...)
			started = true
		})
		if started || len(failed.said) != 1 {
			t.Fatal(failed.said)
		}
		for _, words := range one.expected {
			if !failed.has(words) {
				t.Errorf("%q is not in %s", words, failed.said[0])
			}
		}
	}
}

func TestProgramIsFound(t *testing.T) {
	path, err := exec.LookPath(program())
	if err != nil {
		t.Fatal(err)
	}
	release := t.TempDir()
	if err := os.Mkdir(filepath.Join(release, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(release, "bin", "localregistry")); err != nil {
		t.Fatal(err)
	}
	starts := func() *recorder {
		return run(func(r *recorder) { localregistry.Start(r, localregistry.Serve(in("sample"))) })
	}
	t.Setenv("PATH", "/nowhere:"+filepath.Join(release, "bin"))
	t.Setenv("LOCALREGISTRY", "")
	if r := starts(); r.failed {
		t.Error(r.said)
	}
	t.Setenv("PATH", "/nowhere")
	if r := starts(); !r.has("the option Program: not given\n") || !r.has("LOCALREGISTRY: not set\n") || !r.has("PATH: /nowhere\n") {
		t.Error(r.said)
	}
	t.Setenv("LOCALREGISTRY", release)
	if r := starts(); r.failed {
		t.Error(r.said)
	}
	t.Setenv("LOCALREGISTRY", "/nowhere")
	if r := starts(); !r.has("LOCALREGISTRY is \"/nowhere\"") || !r.has("/nowhere/bin/localregistry\n") {
		t.Error(r.said)
	}
}

// TestHangs is what [TestKilled] kills.
func TestHangs(t *testing.T) {
	if os.Getenv(hangs) == "" {
		return
	}
	reg := localregistry.Start(t, localregistry.Serve(in("sample")))
	pull(t, reg)
	fmt.Printf("\nserves %s %s\n", filepath.Dir(reg.EventLog), reg.Endpoint)
	select {}
}

// TestKilled kills a test by its time limit, and by a signal, and nothing may be left.
func TestKilled(t *testing.T) {
	for _, kill := range []bool{false, true} {
		command := exec.Command(os.Args[0], "-test.run", "^TestHangs$", "-test.timeout", map[bool]string{false: "3s", true: "10m"}[kill])
		command.Env = append(os.Environ(), hangs+"="+sample)
		output, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		command.Stderr = command.Stdout
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		var folder, endpoint, said string
		lines := bufio.NewScanner(output)
		for folder == "" && lines.Scan() {
			_, _ = fmt.Sscanf(lines.Text(), "serves %s %s", &folder, &endpoint)
		}
		if _, err := os.Stat(folder); err != nil {
			t.Fatal(err)
		}
		if kill {
			_ = command.Process.Kill()
		}
		for lines.Scan() {
			said += lines.Text() + "\n"
		}
		if !kill && !strings.Contains(said, "the test is at its time limit; localregistry: the pulls from https://"+endpoint) {
			t.Error(said)
		}
		if err := command.Wait(); err == nil {
			t.Error("the test was to be killed")
		}
		for {
			_, left := os.Stat(folder)
			if _, err := http.Get("http://" + endpoint); err != nil && os.IsNotExist(left) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// serverIn is the process that has files in the folder.
func serverIn(t *testing.T, folder string) int {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range processes {
		if words, _ := os.ReadFile(path); strings.Contains(string(words), "\x00"+folder+"\x00") {
			process, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return process
		}
	}
	t.Fatal("no process has ", folder)
	return 0
}

// TestKilledRegistry: a registry that dies in the middle of a test is the test's failure.
func TestKilledRegistry(t *testing.T) {
	failed := run(func(r *recorder) {
		reg := localregistry.Start(r, localregistry.Serve(in("sample")))
		pull(t, reg)
		reg.AssertPulled(image)
		if err := syscall.Kill(serverIn(t, filepath.Dir(reg.EventLog)), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		for {
			if _, err := reg.Client().Get(reg.URL); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	if !failed.has("the registry ended before the test: signal: killed") && !failed.has("the registry did not end well: signal: killed") || !failed.has(image) {
		t.Error(failed.said)
	}
}
