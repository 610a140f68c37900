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
)

// A page and its pictures can be drawn again from the JSON alone: one SVG for each thing shown, with the name of every subject in it, and
// the page points at all of them.
//
// Broken by: leaving Series out of the JSON; figures that do not put the curves of one What together.
func TestPicturesAreDrawnFromTheResultFile(t *testing.T) {
	r := &Report{
		Schema: reportSchema, Began: time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC), Environment: map[string]string{"go": "go1.26"}, Scenarios: []string{"flush"},
		Series: []Series{
			{Scenario: "flush", Subject: "ours", What: "goodput", Unit: "%", X: []float64{0, 1, 2}, Y: []float64{100, 20, 99}},
			{Scenario: "flush", Subject: "theirs", What: "goodput", Unit: "%", X: []float64{0, 1, 2}, Y: []float64{100, 1, 2}},
			{Scenario: "flush", Subject: "ours", What: "queue", Unit: "queries", Log: true, X: []float64{0, 1}, Y: []float64{0, 16}},
			{Scenario: "flush", Subject: "bar one", What: "loads", Unit: "loads", X: []float64{0}, Y: []float64{1}},
			{Scenario: "flush", Subject: "bar two", What: "loads", Unit: "loads", X: []float64{0}, Y: []float64{40}},
		},
	}
	written, err := r.write(t.TempDir())
	require.NoError(t, err)
	base := strings.TrimSuffix(written, ".md")
	first, err := os.ReadFile(written)
	require.NoError(t, err)
	require.NoError(t, errors.Join(os.Remove(written), os.RemoveAll(base)))

	page, err := Redraw(base + ".json")
	require.NoError(t, err)
	require.Equal(t, written, page)
	again, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, string(first), string(again))
	for file, texts := range map[string][]string{
		"flush-goodput.svg": {"ours", "theirs", "flush: goodput", "%"},
		"flush-queue.svg":   {"ours", "queries"},
		"flush-loads.svg":   {"bar one", "bar two", "40"},
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
// Broken by: not comparing the lengths; not looking at the schema.
func TestWhatCannotBeDrawnIsSaid(t *testing.T) {
	r := &Report{Scenarios: []string{"flush"}, Series: []Series{{Scenario: "flush", Subject: "ours", What: "queue", X: []float64{0, 1}, Y: []float64{0}}}}
	require.ErrorContains(t, r.drawAll(t.TempDir()), "series ours of flush: queue has 2 x and 1 y")
	file := filepath.Join(t.TempDir(), "later.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"schema": 2}`), 0o600))
	_, err := Redraw(file)
	require.ErrorContains(t, err, "schema 2")
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
