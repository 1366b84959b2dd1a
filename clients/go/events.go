package localregistry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Event is an event of the registry. Of its kinds, proto/JSON.md of the project has all fields.
type Event struct {
	// Time is when it happened, by the registry's clock.
	Time time.Time
	// Kind is its kind, such as "ready", "request", "warning", "fault" or "done".
	Kind string
	// JSON is the content: an object with the fields of its kind.
	JSON json.RawMessage
	// Request is set for the kind "request".
	Request *Request
	// Warning is set for the kind "warning".
	Warning *Warning
	// Fault is set for the kind "fault".
	Fault *FaultHit
}

// Request is a request to the registry, logged when its response has ended.
type Request struct {
	// Time is when the response ended, by the registry's clock.
	Time time.Time `json:"-"`
	// Peer is the client's address and port, such as "10.1.0.7:40112".
	Peer string
	// Method is the HTTP method.
	Method string
	// Endpoint is base, manifest, blob, tags, catalog, referrers, token, health, metrics, ca or other.
	Endpoint string
	// Repository is the repository, behind the host of its upstream registry if it has one.
	Repository string
	// Reference is the tag or digest in the request. containerd and dockerd ask for a tag by HEAD, and then for its digest.
	Reference string
	// Digest is that of the content sent.
	Digest string
	// Status is the HTTP status, or 0 if the client left before there was one.
	Status int
	// Bytes is the length of the body that was sent.
	Bytes uint64 `json:",string"`
	// Range is the value of the Range header.
	Range string
	// Duration is the time from the head of the request to the last byte of the response, in seconds.
	Duration float64
	// UserAgent is the value of the User-Agent header.
	UserAgent string
	// Protocol is "HTTP/1.1" or "HTTP/2".
	Protocol string
	// Complete is false if the response was cut short or made wrong.
	Complete bool
	// LeftOut is the platform of the content, if `pack` left it out.
	LeftOut string
	// Fault is the rule of the plan of faults that acted.
	Fault string
}

// By is the client's address. It is invalid if Peer has none.
func (r *Request) By() netip.Addr {
	peer, _ := netip.ParseAddrPort(r.Peer)
	return peer.Addr().Unmap()
}

// OK tells whether the client got the whole content.
func (r *Request) OK() bool {
	return r.Complete && (r.Status == 200 || r.Status == 206)
}

// Warning is a problem that does not stop the registry.
type Warning struct {
	// Code is a stable name, such as "TLS_REFUSED" or "DROPPED_EVENTS".
	Code string
	// Message is a description for people.
	Message string
}

// FaultHit is that a rule of the plan of faults acted.
type FaultHit struct {
	// Rule is the rule's id.
	Rule string
	// Match is which of the requests that matched the rule it was, counted from 1.
	Match uint64
	// Peer is the client's address and port.
	Peer string
	// Action is what was done, for people.
	Action string
	// Bytes is the length of the body that was sent.
	Bytes uint64 `json:",string"`
	// Endpoint, Repository and Reference are those of the request.
	Endpoint, Repository, Reference string
}

// Events returns what the registry has logged so far. The event of a request comes a moment after the client has the last byte of the
// response; [Registry.AssertPulled] waits for it.
func (r *Registry) Events() []Event {
	r.test().Helper()
	log, err := io.ReadAll(io.NewSectionReader(r.process.events, 0, math.MaxInt64))
	if err == nil {
		var events []Event
		if events, err = parse(log); err == nil {
			return events
		}
	}
	r.test().Fatal(fmt.Errorf("localregistry: cannot read the events: %w", err))
	return nil
}

// Requests returns the requests that the registry has logged so far.
func (r *Registry) Requests() []Request {
	r.test().Helper()
	return requests(r.Events())
}

// Pulls returns the requests for manifests that are pulls, or that failed: see [Request.OK]. A pull is one complete response to a GET of an
// image's manifest.
func (r *Registry) Pulls() []Request {
	r.test().Helper()
	log, _ := r.query("events", "--json", "--quiet")
	events, err := parse([]byte(log))
	if err != nil {
		r.test().Fatal(fmt.Errorf("localregistry: cannot read the pulls: %w", err))
	}
	return requests(events)
}

// PullLog returns the table of `localregistry events`: who pulled what so far, and what failed. [Start] logs it if the test has failed.
func (r *Registry) PullLog() string {
	table, err := r.query("events", "--quiet")
	if err != nil && table == "" {
		return "localregistry: no client has asked the registry for anything"
	}
	return fmt.Sprintf("localregistry: the pulls from %s, and what failed:\n%s", r.URL, indented(table))
}

// parse reads lines of a log. A last line that is not complete is left out.
func parse(log []byte) ([]Event, error) {
	var events []Event
	for {
		line, rest, complete := bytes.Cut(log, []byte("\n"))
		if !complete {
			return events, nil
		}
		log = rest
		var fields map[string]json.RawMessage
		var event Event
		err := json.Unmarshal(line, &fields)
		for kind, content := range fields {
			switch {
			case err != nil:
			case kind == "time":
				var seconds float64
				err = json.Unmarshal(content, &seconds)
				event.Time = time.UnixMicro(int64(seconds * 1e6))
			default:
				event.Kind, event.JSON = kind, content
			}
		}
		switch {
		case err != nil:
		case event.Kind == "request":
			event.Request = &Request{Time: event.Time}
			err = json.Unmarshal(event.JSON, event.Request)
			event.Request.Time = event.Time
		case event.Kind == "warning":
			event.Warning = &Warning{}
			err = json.Unmarshal(event.JSON, event.Warning)
		case event.Kind == "fault":
			event.Fault = &FaultHit{}
			err = json.Unmarshal(event.JSON, event.Fault)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		events = append(events, event)
	}
}

func requests(events []Event) []Request {
	var requests []Request
	for _, event := range events {
		if event.Request != nil {
			requests = append(requests, *event.Request)
		}
	}
	return requests
}

// Expectation is an option of the assertions.
type Expectation func(*expectation)

type expectation struct {
	words []string
	// count is the number that is expected exactly.
	count   *int
	bounded bool
	wait    time.Duration
	waits   bool
}

func (e *expectation) add(words ...string) { e.words = append(e.words, words...) }

// Times expects exactly that many pulls, or hits of a rule.
func Times(count int) Expectation {
	return func(e *expectation) { e.count = &count }
}

// AtLeast expects that many pulls or more. One is the default.
func AtLeast(count int) Expectation {
	return func(e *expectation) { e.add("--at-least", strconv.Itoa(count)) }
}

// AtMost expects that many pulls or fewer.
func AtMost(count int) Expectation {
	return func(e *expectation) { e.bounded = true; e.add("--at-most", strconv.Itoa(count)) }
}

// By counts only what the client with this IP address did.
func By(address string) Expectation {
	return func(e *expectation) { e.add("--by", address) }
}

// Wait is how long an assertion reads the log again, in whole seconds; 0 judges the log as it is. What can be broken until the last moment
// (AtMost, Times, AssertNotPulled) takes the whole time, so that it is 1 s by default. Otherwise it is 5 s, and it ends as soon as there are
// enough pulls.
func Wait(wait time.Duration) Expectation {
	return func(e *expectation) { e.wait, e.waits = wait, true }
}

// AssertPulled fails the test, which goes on, unless the image was pulled as expected: at least once by default. The image is named as
// clients do, such as "test/hello:1", "docker.io/library/busybox" or "test/hello@sha256:…". It returns whether it was so.
func (r *Registry) AssertPulled(image string, expectations ...Expectation) bool {
	r.test().Helper()
	return r.assert("--times", []string{"--pulled", image}, "--at-least", false, expectations)
}

// AssertNotPulled fails the test, which goes on, if the image was pulled.
func (r *Registry) AssertNotPulled(image string, expectations ...Expectation) bool {
	r.test().Helper()
	return r.assert("--times", []string{"--not-pulled", image}, "", true, expectations)
}

// AssertFault fails the test, which goes on, unless the rule of the plan of faults acted as expected: at least once by default.
func (r *Registry) AssertFault(rule string, expectations ...Expectation) bool {
	r.test().Helper()
	return r.assert("--hits", []string{"--fault", rule}, "", false, expectations)
}

// assert runs `localregistry assert`. What is expected exactly is waited for first, if atLeast is the option for that.
func (r *Registry) assert(exactly string, words []string, atLeast string, bounded bool, expectations []Expectation) bool {
	r.test().Helper()
	expected := expectation{words: words, bounded: bounded}
	for _, option := range expectations {
		option(&expected)
	}
	wait := expected.wait
	if !expected.waits {
		wait = 5 * time.Second
		if expected.bounded || expected.count != nil {
			wait = time.Second
		}
	}
	judge := func(wait time.Duration, words ...string) error {
		seconds := strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10)
		words = append([]string{"assert", "--quiet", "--wait", seconds}, append(words, expected.words...)...)
		_, err := r.query(words...)
		return err
	}
	var err error
	if expected.count == nil {
		err = judge(wait)
	} else {
		count := strconv.Itoa(*expected.count)
		if atLeast != "" && !expected.waits && *expected.count > 0 {
			// If there are too few, the next one says so.
			if judge(5*time.Second, atLeast, count) != nil {
				wait = 0
			}
		}
		err = judge(wait, exactly, count)
	}
	if err != nil {
		r.test().Error(err)
	}
	return err == nil
}

// query runs a command of the program on the event log. The error has the program's message.
func (r *Registry) query(words ...string) (string, error) {
	// The log may have lost its name.
	const log = "/dev/stdin"
	var output, said bytes.Buffer
	command := exec.Command(r.process.program, append(words, log)...)
	command.Stdin, command.Stdout, command.Stderr = r.process.events, &output, &said
	err := command.Run()
	if message := strings.TrimSpace(strings.ReplaceAll(said.String(), log, r.EventLog)); err != nil && message != "" {
		err = errors.New(message)
	}
	return output.String(), err
}

// test is the test to report to.
func (r *Registry) test() T {
	if r.t == nil {
		panic("localregistry: a registry of Open has no test to report to: call its method With(t) first")
	}
	return r.t
}
