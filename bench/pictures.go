package bench

import "fmt"

// whatToSee says of each picture, by its title, what to look for in it. It stands here and not in the result file, so that a page that is
// drawn again has it as it is now.
var whatToSee = map[string]string{
	"flush: goodput": "Requests answered in time, before and after Redis lost everything: where a curve comes back, the cache fills faster than it is asked; " +
		"where it stays down, the source works for callers who have left.",
	"flush: queue": "Queries that wait at the source: the gate keeps ours short, whatever the load; without one they are as many as there are callers.",
	"flush: loads": "Queries that the source finishes: all curves reach what it can do, so what differs above is whether its work is kept.",

	"stampede: loads of one row in a stampede":    "Loads of the row in the worst round: one is enough; four is one an instance.",
	"stampede: what readers wait in a stampede":   "What the last readers waited: the row itself takes 50 ms, the rest is the queue that the loads made.",
	"penetration: absent keys at the source":      "The share of the absent keys that the source was asked for: with a filter it stays below the dashed line in each step; without one the miss budget is all there is.",
	"penetration: hits of rows in memory":         "The share of the requests for rows that memory answers: a flood of absent keys must not push rows out.",
	"hot: what Redis sees of the hot key":         "Round trips for one key that suddenly is half of all requests: from the pin on no more than the dashed line, at whatever rate it is read.",
	"ttl: loads":                                  "Share of the keys loaded in each minute when all were loaded at once: without anything the filling comes back every ten minutes; ours has the mean from the beginning.",
	"filterlife: course":                          "Inserts and questions of all processes while filters are built, one process stands still, the stream is trimmed and Redis flushed: the curve of false negatives is the axis. Where inserts fall to nothing they are held for a fault.",
	"filterlife: processes without a filter":      "How many processes let everything pass since their filter was in doubt: what the absence of false negatives costs, from the loss to the next build.",
	"traces: points against otter":                "Our mean hit ratio minus otter's on each trace: above 0 we keep the better entries; the dashed lines are the worst that is allowed.",
	"traces: any other, a picture for each trace": "Hits by how many entries there is room for: what is between a curve and the optimum is what its policy does not see coming.",
}

// sentence is what to see in the picture; "" where nobody has said.
func (f *figure) sentence() string {
	if s := whatToSee[f.title()]; s != "" || f.scenario != "traces" {
		return s
	}
	return whatToSee["traces: any other, a picture for each trace"]
}

// repeat is the command that measures a scenario again.
func repeat(scenario string) string {
	if scenario == "traces" {
		return "make traces DIR=…"
	}
	return fmt.Sprintf("make bench ARGS='-scenarios %s'", scenario)
}

// outside are the pictures that are shown outside of the result pages too, by their files.
var outside = []string{"flush-goodput.svg"}
