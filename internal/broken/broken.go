// Package broken leaves out rules of the protocol, one at a time, so that the fleet's runs can show that they notice (make fleet-broken).
//
// In an ordinary build every rule is kept: Left is false for all of them, at compile time, and what asks it is no code at all. Built with the
// tag `broken`, the environment variable TIERCACHE_BROKEN names the rule that is left out. Such a build answers wrongly on purpose and is
// good for nothing else.
package broken

// Rule is one rule of the protocol that can be left out.
type Rule string

// The rules, each with the races it closes.
const (
	Token  Rule = "token"  // fill: only under a lease that still stands (R1, R8)
	Mark   Rule = "mark"   // memory keeps only what was read since the last event (R2, R3)
	Forget Rule = "forget" // an invalidation forgets the flight under way (R4)
	Cut    Rule = "cut"    // what is loaded inside a delete window ends with it (R6, R7)
	Order  Rule = "order"  // the delete comes before the event (R5)
	Replay Rule = "replay" // what is pending is replayed
)

// Rules are all of them.
var Rules = []Rule{Token, Mark, Forget, Cut, Order, Replay}
