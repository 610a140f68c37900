package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	plottext "gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
)

// palette is told apart also by the colour-blind (Okabe and Ito, 2008). Ours comes first.
var palette = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff},
	color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	color.RGBA{0x56, 0xb4, 0xe9, 0xff},
}

// The measures of a picture, in points: chosen by looking at it.
const (
	pictureWidth  = 20 * vg.Centimeter
	pictureHeight = 10 * vg.Centimeter
	margin        = 8
	titleSize     = 13
	textSize      = 10
	lineHeight    = 14
	thumbnail     = 18
	gap           = 12
	fontSlack     = 1.15 // a viewer's letters may be wider than those of the font that was measured
	axisWidth     = 55   // about what the axis at the left takes
)

// acrossColor is that of bounds and moments: none of a curve's.
var acrossColor = color.Gray{0x60}

// svg returns the picture. The same series give the same bytes.
func (f *figure) svg() ([]byte, error) {
	canvas, err := vgdraw.NewFormattedCanvas(pictureWidth, pictureHeight, "svg")
	if err == nil {
		err = f.draw(vgdraw.New(canvas))
	}
	var out bytes.Buffer
	if err == nil {
		_, err = canvas.WriteTo(&out)
	}
	if err != nil {
		return nil, err
	}
	// Where a reader's machine lacks the font that gonum/plot names, one as wide takes its place.
	return bytes.ReplaceAll(out.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// draw draws the picture on all of c. Title, legend and the texts of moments stand above the curves, which they would hide.
func (f *figure) draw(c vgdraw.Canvas) error {
	if err := f.check(); err != nil {
		return err
	}
	p := plot.New()
	for _, s := range []*plottext.Style{&p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		s.Font = lettering(textSize).Font
	}
	p.X.Label.Text = f.curves[0].XUnit
	p.X.Padding, p.Y.Padding = 2, 2
	p.X.Tick.Marker, p.Y.Tick.Marker = numbered(plot.DefaultTicks{}), numbered(plot.DefaultTicks{})
	grid := plotter.NewGrid()
	grid.Vertical.Width, grid.Horizontal.Color = 0, color.Gray{0xdd}
	p.Add(grid)
	legend := legend{}
	if f.curves[0].Names != nil || !slices.ContainsFunc(f.curves, func(s Series) bool { return len(s.X) > 1 }) {
		f.addBars(p, &legend)
	} else if err := f.addLines(p, &legend); err != nil {
		return fmt.Errorf("%s: %w", f.title(), err)
	}
	f.addBounds(p, &legend)
	f.scale(p)
	labels := f.labels(p)
	p.Add(labels)

	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	c = vgdraw.Crop(c, margin, -margin, margin, -margin)
	c.FillText(lettering(titleSize), vg.Point{X: c.Min.X, Y: c.Max.Y - titleSize}, f.title())
	header := titleSize + legend.draw(vgdraw.Crop(c, 0, 0, 0, -lineHeight-titleSize/2)) + lineHeight*vg.Length(labels.rows) + gap
	c = vgdraw.Crop(c, 0, 0, 0, -header)
	upwards := lettering(textSize) // by hand: the library's own makes room above a logarithmic axis
	upwards.Rotation, upwards.XAlign = math.Pi/2, plottext.XCenter
	c.FillText(upwards, vg.Point{X: c.Min.X + textSize, Y: c.Center().Y}, f.curves[0].Unit)
	p.Draw(vgdraw.Crop(c, textSize+gap/2, 0, 0, 0))
	return nil
}

// addBounds adds the heights that curves are held against.
func (f *figure) addBounds(p *plot.Plot, l *legend) {
	for _, s := range f.bounds {
		across := vgdraw.LineStyle{Color: acrossColor, Width: 1, Dashes: []vg.Length{6, 3}}
		if p.Y.Max = max(p.Y.Max, s.Y[0]); !f.curves[0].Log {
			p.Y.Min = min(p.Y.Min, s.Y[0])
		}
		p.Add(boundLine{across, s.Y[0]})
		l.add(s.Subject, (&plotter.Line{LineStyle: across}).Thumbnail)
	}
}

func lettering(size vg.Length) plottext.Style {
	return plottext.Style{Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size), Handler: plot.DefaultTextHandler, Color: color.Black}
}

// scale sets the ends of the axes and what is written at them.
func (f *figure) scale(p *plot.Plot) {
	if f.curves[0].Log {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, numbered(plot.LogTicks{})
		p.Y.Max = max(p.Y.Max, 10)
	}
	if f.curves[0].LogX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, f.measured()
	}
	for _, s := range f.moments {
		p.X.Min, p.X.Max = min(p.X.Min, s.X[0]), max(p.X.Max, s.X[0])
	}
	room := 0.05 * (p.Y.Max - p.Y.Min) // a curve at the edge is seen
	p.Y.Max += room
	if p.Y.Min < 0 {
		p.Y.Min -= room
	}
}

// addLines adds a line for each curve, and points where the course has few.
func (f *figure) addLines(p *plot.Plot, l *legend) error {
	const few = 12
	p.Y.Min = 0
	if f.curves[0].Log {
		p.Y.Min = 1
	}
	for i, s := range f.curves {
		line, points, err := plotter.NewLinePoints(s.points())
		if err != nil {
			return fmt.Errorf("series %s: %w", s.Subject, err)
		}
		line.Color, line.Width = palette[i%len(palette)], 1.6
		p.Add(line)
		if len(s.X) <= few {
			points.Color, points.Shape, points.Radius = line.Color, vgdraw.CircleGlyph{}, 2.5
			p.Add(points)
		}
		l.add(s.Subject, line.Thumbnail)
	}
	return nil
}

func (s Series) points() plotter.XYs {
	points := make(plotter.XYs, len(s.X))
	for i := range points {
		points[i] = plotter.XY{X: s.X[i], Y: s.Y[i]}
		if s.Log {
			points[i].Y = max(points[i].Y, 1)
		}
	}
	return points
}

// measured are ticks where something was measured.
func (f *figure) measured() plot.ConstantTicks {
	at := map[float64]bool{}
	var ticks plot.ConstantTicks
	for _, s := range f.curves {
		for _, x := range s.X {
			if !at[x] {
				at[x] = true
				ticks = append(ticks, plot.Tick{Value: x, Label: number(x)})
			}
		}
	}
	return ticks
}

// numbered are another one's ticks with their numbers as they stand in tables. A tick beyond the axis would take room from the curves.
func numbered(of plot.Ticker) plot.TickerFunc {
	return func(low, high float64) []plot.Tick {
		ticks := slices.DeleteFunc(of.Ticks(low, high), func(t plot.Tick) bool { return t.Value < low || t.Value > high })
		for i := range ticks {
			if ticks[i].Label != "" {
				ticks[i].Label = number(ticks[i].Value)
			}
		}
		return ticks
	}
}

const (
	slantFrom   = 90 // letters: if the names below the bars need more room, they stand aslant
	figuresUpTo = 16 // bars: of more, only the table has the figures
)

// addBars adds bars with their figures: groups with a legend where the curves have names, else one bar a curve, which stands for its subject.
func (f *figure) addBars(p *plot.Plot, l *legend) {
	b := &bars{names: f.curves[0].Names, log: f.curves[0].Log}
	for i, s := range f.curves {
		colour := palette[i%len(palette)]
		if s.Names == nil {
			b.names = append(b.names, s.Subject)
			b.all = append(b.all, bar{at: float64(i), value: s.Y[0], color: colour})
			continue
		}
		for name, y := range s.Y {
			b.all = append(b.all, bar{at: float64(name) + (float64(i)-float64(len(f.curves)-1)/2)*b.width(len(f.curves)), value: y, color: colour})
		}
		l.add(s.Subject, func(c *vgdraw.Canvas) { c.SetColor(colour); c.Fill(c.Rectangle.Path()) })
	}
	b.share = b.width(len(f.curves))
	if f.curves[0].Names == nil {
		b.share = b.width(1)
	}
	p.Y.Min, p.Y.Max = 0, 0
	if b.log {
		p.Y.Min = 0.5 // so that a bar of one is seen
	}
	for _, bar := range b.all {
		p.Y.Max = max(p.Y.Max, bar.value)
		if !b.log {
			p.Y.Min = min(p.Y.Min, bar.value)
		}
	}
	if room := 0.1 * (p.Y.Max - p.Y.Min); !b.log { // for the figures at the bars
		p.Y.Max += room
		if p.Y.Min < 0 {
			p.Y.Min -= room
		}
	} else {
		p.Y.Max *= 1.5
	}
	longest := 0
	for _, name := range b.names {
		longest = max(longest, len(name))
	}
	names := b.names
	if len(names)*longest > slantFrom {
		label := &p.X.Tick.Label
		label.Rotation, label.XAlign, label.YAlign = math.Pi/5, plottext.XRight, plottext.YCenter
		names = slices.Clone(names)
		for i := range names {
			names[i] += "     " // it ends at the axis
		}
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.6, float64(len(b.names))-0.4
	p.Add(b)
}

// bars are rectangles from the height 0, or on a logarithmic axis from its foot.
type bars struct {
	names []string
	all   []bar
	log   bool
	share float64 // of a bar in the room of one name
}

type bar struct {
	at, value float64
	color     color.Color
}

func (*bars) width(of int) float64 { return 0.7 / float64(of) }

func (b *bars) Plot(c vgdraw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	foot := toY(max(p.Y.Min, 0))
	style := lettering(textSize - 1)
	style.XAlign = plottext.XCenter
	for _, bar := range b.all {
		left, right, end := toX(bar.at-b.share/2), toX(bar.at+b.share/2), toY(max(bar.value, p.Y.Min))
		c.SetColor(bar.color)
		c.Fill(vg.Rectangle{Min: vg.Point{X: left, Y: min(foot, end)}, Max: vg.Point{X: right - 1, Y: max(foot, end)}}.Path())
		if len(b.all) > figuresUpTo {
			continue
		}
		beside := end + 3
		if bar.value < 0 {
			beside = end - textSize
		}
		c.FillText(style, vg.Point{X: (left + right) / 2, Y: beside}, number(bar.value))
	}
	c.StrokeLine2(vgdraw.LineStyle{Color: color.Black, Width: 0.5}, c.Min.X, foot, c.Max.X, foot)
}

// boundLine is a line across the picture at a height.
type boundLine struct {
	style vgdraw.LineStyle
	y     float64
}

func (b boundLine) Plot(c vgdraw.Canvas, p *plot.Plot) {
	_, toY := p.Transforms(&c)
	if b.y < p.Y.Min {
		return // on a logarithmic axis, below its foot
	}
	c.StrokeLine2(b.style, c.Min.X, toY(b.y), c.Max.X, toY(b.y))
}

// momentLines are lines across the picture at moments, their texts above it in rows, so that none stands in another one's place.
type momentLines struct {
	all  []Series
	row  []int
	rows int
}

// labels finds a row for each moment's text, by what the axes are to be.
func (f *figure) labels(p *plot.Plot) *momentLines {
	m := &momentLines{all: slices.Clone(f.moments)}
	slices.SortStableFunc(m.all, func(a, b Series) int { return cmp.Compare(a.X[0], b.X[0]) })
	width := float64(pictureWidth - 2*margin - axisWidth)
	var taken []float64 // in each row, up to where
	for _, s := range m.all {
		from, to := m.place(s, width*(s.X[0]-p.X.Min)/(p.X.Max-p.X.Min), width)
		row := len(taken) // below all texts that its line would else cross
		for row > 0 && taken[row-1] < from {
			row--
		}
		if row == len(taken) {
			taken = append(taken, 0)
		}
		taken[row] = to + gap
		m.row = append(m.row, row)
	}
	m.rows = len(taken)
	return m
}

// place returns from where to where a moment's text reaches: to the right of its line, or to the left where there is no room.
func (*momentLines) place(s Series, at, width float64) (from, to float64) {
	long := float64(lettering(textSize-1).Width(s.Subject)) + 3
	if at+long > width {
		return at - long, at
	}
	return at + 3, at + long
}

func (m *momentLines) Plot(c vgdraw.Canvas, p *plot.Plot) {
	toX, _ := p.Transforms(&c)
	style := lettering(textSize - 1)
	style.Color = acrossColor
	for i, s := range m.all {
		x, y := toX(s.X[0]), c.Max.Y+lineHeight*vg.Length(m.rows-1-m.row[i])+3
		from, _ := m.place(s, float64(x-c.Min.X), float64(c.Max.X-c.Min.X))
		c.StrokeLine2(vgdraw.LineStyle{Color: acrossColor, Width: 0.8, Dashes: []vg.Length{2, 2}}, x, c.Min.Y, x, y+textSize-2)
		c.FillText(style, vg.Point{X: c.Min.X + vg.Length(math.Round(from)), Y: y}, s.Subject)
	}
}

// legend says which colour is whose, in rows that are filled from the left.
type legend struct {
	names  []string
	thumbs []func(*vgdraw.Canvas)
}

func (l *legend) add(name string, thumb func(*vgdraw.Canvas)) {
	l.names, l.thumbs = append(l.names, name), append(l.thumbs, thumb)
}

// draw draws it at the upper edge of c and returns how high it is.
func (l *legend) draw(c vgdraw.Canvas) vg.Length {
	style := lettering(textSize)
	at := vg.Point{X: c.Min.X, Y: c.Max.Y - lineHeight}
	if len(l.names) == 0 {
		return 0
	}
	for i, name := range l.names {
		width := thumbnail + 4 + style.Width(name)*fontSlack
		if at.X > c.Min.X && at.X+width > c.Max.X {
			at = vg.Point{X: c.Min.X, Y: at.Y - lineHeight}
		}
		icon := vgdraw.Canvas{Canvas: c.Canvas, Rectangle: vg.Rectangle{Min: at, Max: vg.Point{X: at.X + thumbnail, Y: at.Y + textSize - 3}}}
		l.thumbs[i](&icon)
		c.FillText(style, vg.Point{X: at.X + thumbnail + 4, Y: at.Y}, name)
		at.X += width + gap
	}
	return c.Max.Y - at.Y
}
