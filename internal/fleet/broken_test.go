//go:build broken

package fleet

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/tiercache/tiercache/internal/broken"
)

// bound is how many runs a rule that is left out may stay unnoticed. Chosen.
const bound = 2000

// Property: a fleet in which a rule of the protocol is left out breaks a promise within a bounded number of runs: the runs and their judge
// see what they are for. Each rule is played by a process of its own, which is told the rule by its environment.
func TestEveryRuleLeftOutIsCaught(t *testing.T) {
	said := regexp.MustCompile(`CAUGHT (\d+) (\S+) (.*)`)
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-8s  %-9s  %-8s  %s\n", "rule", "after run", "property", "how")
	for _, rule := range broken.Rules {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRuleLeftOut$", "-test.v")
		cmd.Env = append(os.Environ(), "TIERCACHE_BROKEN="+string(rule))
		out, err := cmd.CombinedOutput()
		found := said.FindSubmatch(out)
		if found == nil {
			t.Errorf("rule %q left out: not caught within %d runs: %v\n%s", rule, bound, err, out)
			continue
		}
		fmt.Fprintf(&table, "%-8s  %-9s  %-8s  %s\n", rule, found[1], found[2], found[3])
	}
	t.Log(table.String())
}

// TestRuleLeftOut plays until a promise is broken. Without a rule in its environment nothing is left out, and there is nothing to catch.
func TestRuleLeftOut(t *testing.T) {
	if os.Getenv("TIERCACHE_BROKEN") == "" {
		t.Skip("TIERCACHE_BROKEN names no rule: TestEveryRuleLeftOutIsCaught does")
	}
	seed := setting(t, "TIERCACHE_FLEET_SEED", 1)
	for i := range uint64(bound) {
		if v := Virtual(t, seed+i); !v.OK() {
			b := v.Breaches[0]
			fmt.Printf("CAUGHT %d %s %s\n", i+1, b.Property, b.Text)
			return
		}
	}
	t.Errorf("no run of %d broke a promise", bound)
}
