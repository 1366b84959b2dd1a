package localregistry

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

// Faults changes the plan of faults of a registry: how it misbehaves, for which requests. When a method returns, the next request sees the
// change. The test fails at once if the registry refuses it; then the plan is as before. docs/faults.md of the project describes plans.
type Faults struct{ registry *Registry }

// FaultRule is a rule of the plan of faults.
type FaultRule struct {
	// ID is its id.
	ID string
	// About is what it is for.
	About string
	// Matches is how many requests matched it. Only [Faults.List] counts them.
	Matches uint64
	// Hits is on how many of these it acted. Only [Faults.List] counts them.
	Hits uint64
	// Rule is the whole rule as JSON.
	Rule string
}

// Faults is the registry's plan of faults.
func (r *Registry) Faults() Faults { return Faults{r} }

// Add adds the rules of a plan, which is JSON or prototext, to those in force, and returns them.
func (f Faults) Add(plan string) []FaultRule {
	f.registry.test().Helper()
	return f.command(plan, "add", "-")
}

// Replace replaces all rules by those of a plan, which is JSON or prototext, at once, and returns them.
func (f Faults) Replace(plan string) []FaultRule {
	f.registry.test().Helper()
	return f.command(plan, "replace", "-")
}

// Remove removes the rules with these ids, and returns them.
func (f Faults) Remove(ids ...string) []FaultRule {
	f.registry.test().Helper()
	return f.command("", append([]string{"remove", "--"}, ids...)...)
}

// Clear removes all rules, and returns them.
func (f Faults) Clear() []FaultRule {
	f.registry.test().Helper()
	return f.command("", "clear")
}

// Reset sets the counts of all rules to zero.
func (f Faults) Reset() {
	f.registry.test().Helper()
	f.command("", "reset")
}

// List returns the rules in force, with their counts.
func (f Faults) List() []FaultRule {
	f.registry.test().Helper()
	return f.command("", "list")
}

func (f Faults) command(plan string, words ...string) []FaultRule {
	f.registry.test().Helper()
	p := f.registry.process
	words = append([]string{"faults", "--json", "--quiet", filepath.Join(p.folder, "control")}, words...)
	var result struct{ Rules []FaultRule }
	output, err := p.run(strings.NewReader(plan), words...)
	if err == nil {
		if err = json.Unmarshal(output, &result); err != nil {
			err = fmt.Errorf("localregistry: `localregistry faults` printed %q: %w", output, err)
		}
	}
	if err != nil {
		f.registry.test().Fatal(err)
	}
	return result.Rules
}
