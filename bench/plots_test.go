package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
)

// A page and its pictures can be drawn again from the JSON alone: one SVG for each thing shown, with the name of every subject in it, and
// the page points at all of them.
//
// Broken by: leaving Series out of the JSON; figures that do not put the curves of one What together; bounds that are not in the
// legend; moments that are not kept apart from curves; a page without sentences; pictures that are not copied.
func TestPicturesAreDrawnFromTheResultFile(t *testing.T) {
	r := &Report{
		Schema: reportSchema, Began: time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC), Environment: map[string]string{"go": "go1.26"}, Scenarios: []string{"flush"},
		Series: []Series{
			{Scenario: "flush", Subject: "ours", What: "goodput", Unit: "%", X: []float64{0, 1, 2}, Y: []float64{100, 20, 99}},
			{Scenario: "flush", Subject: "theirs", What: "goodput", Unit: "%", X: []float64{0, 1, 2}, Y: []float64{100, 1, 2}},
			{Scenario: "flush", Subject: "ours", What: "queue", Unit: "queries", Log: true, X: []float64{0, 1}, Y: []float64{0, 16}},
			{Scenario: "flush", Subject: "asked for", What: "queue", Kind: bound, X: []float64{0}, Y: []float64{8}},
			{Scenario: "flush", Subject: "FLUSHALL", What: "queue", Kind: moment, X: []float64{0.5}, Y: []float64{0}},
			{Scenario: "flush", Subject: "bar one", What: "loads", Unit: "loads", X: []float64{0}, Y: []float64{1}},
			{Scenario: "flush", Subject: "bar two", What: "loads", Unit: "loads", X: []float64{0}, Y: []float64{40}},
			{Scenario: "flush", Subject: "one group", What: "points", Unit: "points", Names: []string{"a", "b"}, X: []float64{0, 1}, Y: []float64{-7, 3}},
		},
	}
	written, err := r.write(t.TempDir())
	require.NoError(t, err)
	base := strings.TrimSuffix(written, ".md")
	first, err := os.ReadFile(written)
	require.NoError(t, err)
	require.NoError(t, errors.Join(os.Remove(written), os.RemoveAll(base)))

	img := filepath.Join(t.TempDir(), "img")
	page, err := Redraw(base+".json", img)
	require.NoError(t, err)
	require.Equal(t, written, page)
	again, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, string(first), string(again))
	shown, err := os.ReadFile(filepath.Join(img, "flush-goodput.svg"))
	require.NoError(t, err)
	drawn, err := os.ReadFile(filepath.Join(base, "flush-goodput.svg"))
	require.NoError(t, err)
	require.Equal(t, string(drawn), string(shown))
	require.Contains(t, string(again), whatToSee["flush: goodput"])
	require.Contains(t, string(again), "make bench ARGS='-scenarios flush'")
	for file, texts := range map[string][]string{
		"flush-goodput.svg": {"ours", "theirs", "flush: goodput", "%"},
		"flush-queue.svg":   {"ours", "queries", "asked for", "FLUSHALL"},
		"flush-loads.svg":   {"bar one", "bar two", "40"},
		"flush-points.svg":  {"one group", "a", "b", "-7"},
	} {
		require.Contains(t, string(again), "]("+filepath.Base(base)+"/"+file+")")
		drawn := svgTexts(t, filepath.Join(base, file))
		for _, text := range texts {
			require.Contains(t, drawn, text, file)
		}
	}
}

// svgTexts returns the texts of a picture, which must be well-formed and an svg.
func svgTexts(t *testing.T, path string) (texts []string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // read only
	root := ""
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			require.Equal(t, "svg", root)
			return texts
		}
		require.NoError(t, err, path)
		switch token := token.(type) {
		case xml.StartElement:
			if root == "" {
				root = token.Name.Local
			}
		case xml.CharData:
			texts = append(texts, strings.TrimSpace(string(token)))
		}
	}
}

// A series that cannot be drawn is an error that names it, and a file of a later schema is none that is guessed at.
//
// Broken by: not comparing the lengths; not comparing the names; a figure without curves that is drawn; not looking at the schema.
func TestWhatCannotBeDrawnIsSaid(t *testing.T) {
	for want, all := range map[string][]Series{
		"series ours of flush: queue has 2 x and 1 y":                         {{Subject: "ours", X: []float64{0, 1}, Y: []float64{0}}},
		"series asked for of flush: queue has 0 x and 0 y":                    {{Subject: "ours", X: []float64{0}, Y: []float64{0}}, {Subject: "asked for", Kind: bound}},
		"series ours of flush: queue: 1 points, 2 names; the picture has 2":   {{Subject: "ours", Names: []string{"a", "b"}, X: []float64{0}, Y: []float64{0}}},
		"series theirs of flush: queue: 1 points, 0 names; the picture has 1": {{Subject: "ours", Names: []string{"a"}, X: []float64{0}, Y: []float64{0}}, {Subject: "theirs", X: []float64{0}, Y: []float64{0}}},
		"flush: queue has no curve":                                           {{Subject: "asked for", Kind: bound, X: []float64{0}, Y: []float64{0}}},
	} {
		r := &Report{Scenarios: []string{"flush"}}
		for _, s := range all {
			s.Scenario, s.What = "flush", "queue"
			r.Series = append(r.Series, s)
		}
		require.ErrorContains(t, r.drawAll(t.TempDir()), want)
	}
	file := filepath.Join(t.TempDir(), "later.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"schema": 3}`), 0o600))
	_, err := Redraw(file, "")
	require.ErrorContains(t, err, "schema 3")
}

// The texts of moments stand beside each other where there is room, and else above each other; a line to the right of the middle of the picture
// has its text at its left. A picture comes out the same each time.
//
// Broken by: one row for all; a text that always stands at the right.
func TestTextsOfMomentsHaveRoom(t *testing.T) {
	course := Series{Scenario: "filterlife", Subject: "inserts", What: "course", X: []float64{0, 100}, Y: []float64{0, 1}}
	r := &Report{Scenarios: []string{"filterlife"}, Series: []Series{course}}
	for at, text := range map[float64]string{0: "begin", 20: "stopped for a while", 21: "trimmed a little later", 99: "flushed"} {
		s := course.momentAt(at, text)
		s.Scenario = "filterlife"
		r.Series = append(r.Series, s)
	}
	f := r.figures("filterlife")[0]
	p := plot.New()
	p.X.Min, p.X.Max = 0, 100
	labels := f.labels(p)
	require.Equal(t, []int{0, 0, 1, 0}, labels.row)
	require.Equal(t, 2, labels.rows)
	from, to := labels.place(labels.all[3], 495, 500)
	require.InDelta(t, 495, to, 0)
	require.Less(t, from, 470.0)
	first, err := f.svg()
	require.NoError(t, err)
	again, err := f.svg()
	require.NoError(t, err)
	require.Equal(t, string(first), string(again))
}

// What is not above zero has no place on a logarithmic axis: it is drawn at its foot, a bar of one is seen.
//
// Broken by: points as they are; an axis down to the smallest bar; one down to the smallest bound; a foot of one for bars.
func TestLogarithmicPicturesOfNothing(t *testing.T) {
	lines := figure{scenario: "s", what: "lines", curves: []Series{{Subject: "ours", Log: true, X: []float64{0, 1}, Y: []float64{0, -2}}}}
	lines.add(lines.curves[0].boundAt(0, "none"))
	_, err := lines.svg()
	require.NoError(t, err)
	bars := figure{scenario: "s", what: "bars", curves: []Series{{Subject: "ours", Log: true, X: []float64{0}, Y: []float64{1}}, {Subject: "theirs", Log: true, X: []float64{0}, Y: []float64{0}}}}
	_, err = bars.svg()
	require.NoError(t, err)
	p := plot.New()
	bars.addBars(p, &legend{})
	require.Less(t, p.Y.Min, 1.0)
}

// A flush that was not recovered from within the run is a missed budget of ours, however short the run was; one that was has its seconds.
//
// Broken by: judging the seconds of the run where goodput did not come back.
func TestFlushNotRecoveredFromIsMissed(t *testing.T) {
	src := newSource(sourceOptions{workers: 1, mean: time.Second})
	defer src.close()
	out := &seen{all: newOutcome(), second: []outcome{{ok: 9}, {ok: 9}, {ok: 9}, {failed: 9}, {ok: 98, failed: 2}}}
	row := flushRows(rivals(1)[0], true, out, sourceStats{}, src)[0]
	require.Equal(t, "MISSED", row.Budget.verdict(row.Value))
	out.second = append(out.second, outcome{ok: 99, failed: 1})
	row = flushRows(rivals(1)[0], true, out, sourceStats{}, src)[0]
	require.Equal(t, "OK", row.Budget.verdict(row.Value))
	require.InDelta(t, 2, row.Value, 0)
}
