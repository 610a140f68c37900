// Package fleet plays a fleet of processes against a model of a database, and judges what their callers saw.
//
// A run is drawn from a seed: two to four processes, each with a cache of its own over its own client and memory, a handful of keys, a
// database that remembers every version of every row and may read from a lagging replica, and a plan of what the callers do and what goes
// wrong when. Everything that matters is recorded: loads, writes, answers, and what Redis holds. Judge then holds the record against the
// promises of the library (P1 to P8, P11, P13 of the root's package comment). A run that breaks one prints its seed and the story of the key.
//
// # Two stages
//
// Virtual plays in one bubble of testing/synctest: time is virtual, the network is made of lanes in memory, and Redis is an imitation
// that runs our own Lua scripts. A run of some seconds of that time takes milliseconds, and order in it comes from times drawn from the
// seed. So a seed nearly always replays the same run; where two things fall on one instant, and in what the library draws by itself (pauses,
// tokens), it may not.
//
// Real plays the same plan on real servers in real time: there a seed replays the plan, not the run.
//
// # What makes a run fail, and what does not
//
// A promise comes with limits, and a run that goes beyond a limit must not fail. So the record also has the troubles: since when and until
// when what was disturbed. Each rule of Judge says which troubles lift it. What is left unlifted is kept as sharp as it can be said from
// outside; `make fleet-broken` shows that it is sharp enough, by leaving out rules of the protocol one at a time.
package fleet
