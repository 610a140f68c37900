//go:build broken

package broken

import (
	"os"
	"slices"
	"strings"
)

var left = Rule(os.Getenv("TIERCACHE_BROKEN"))

func init() {
	if left != "" && !slices.Contains(Rules, left) {
		panic("broken: TIERCACHE_BROKEN names no rule: " + string(left))
	}
}

// Left reports whether a rule is left out.
func Left(r Rule) bool { return r == left }

// lines are the lines of scripts that keep a rule, and what takes their place where it is left out.
var lines = map[Rule]struct{ script, line, instead string }{
	Token: {"fill", "if g.token ~= token or g.stamp ~= ARGV[11] then", "if false then"},
	Cut:   {"acquire", "g.leaseEnd, g.leaseGen = now + lease, generation", "g.leaseEnd, g.leaseGen, g.cut = now + lease, generation, 0"},
	Order: {"invalidate", "redis.call('PUBLISH', ARGV[6], ARGV[7])", ""}, // it was published before
}

// Script returns a script's text as it is to be run.
func Script(name, text string) string {
	l, ok := lines[left]
	if !ok || l.script != name {
		return text
	}
	if strings.Count(text, l.line) != 1 {
		panic("broken: " + name + " has not exactly one line " + l.line)
	}
	return strings.Replace(text, l.line, l.instead, 1)
}
