// Package faulty makes remote calls fail, by rules and a seed: commands to Redis, the bus's messages, loads, anything.
//
// A Faults is asked about every call before it is made. Its rules choose calls by name, by server, by what they are about and by
// chance, and say what befalls them: refused, reset, answered with an error, held until their time is over, carried out without an
// acknowledgement, carried out twice, late, or after a call that began later. All that would be in the hand of a network is here in
// the hand of the test.
//
//	f := faulty.New(seed, faulty.Rule{Kind: faulty.AppliedReset, Names: []string{"evalsha"}, P: 0.1})
//	t.Cleanup(f.Close)
//	f.Install(rdb)                        // its commands and pipelines
//	o.Load = faulty.Load(f, o.Load)       // loads
//	options.Dialer = f.Dialer(nil)        // connections, what arrives on them, and the bus
//
// # What replays
//
// Whether a rule strikes a call is a function of the seed, of the rules, and of how many calls of this name the rule has seen. So the same
// seed strikes the same calls of each name; which goroutine makes the third call of a name is the scheduler's choice and ours only in so far as
// the test makes calls one after the other, or runs in virtual time.
//
// # Time
//
// Nothing sleeps: what is held waits for a timer, for its context or for another call, so all of it works in a bubble of testing/synctest. A
// Faults must be made inside the bubble. What runs late runs on goroutines that Close ends and waits for.
//
// # Where the faults are
//
// Install's hooks stand above the client's own retries: a fault there is what the library is told, once. The faults of Dialer stand below
// them: there a lost reply also shows whether the client sends again what must be sent once. The library's bus and its look whether a server takes connections
// use the client's Dialer and not its hooks: only Dialer reaches those.
package faulty
