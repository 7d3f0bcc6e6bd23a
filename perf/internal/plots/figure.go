package plots

import (
	"fmt"
	"image/color"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"ironspan/perf/internal/result"
)

// figure is a plot with a legend of its own below, where it covers nothing, and a line that says where it comes from.
type figure struct {
	name     string // of the files
	title    string
	vertical string // what the vertical axis shows; above it, for there it can be read, and has its place on any scale
	plot     *plot.Plot
	height   vg.Length // of the plot by itself
	entries  []entry
	caption  string
}

// entry is one line of a legend.
type entry struct {
	text   string
	thumbs []plot.Thumbnailer
}

// Sizes on paper. At dpi the PNG is 1700 pixels wide.
const (
	width       = 24 * vg.Centimeter
	height      = 12 * vg.Centimeter
	margin      = 0.5 * vg.Centimeter
	line        = 0.62 * vg.Centimeter // of the legend
	thumb       = 1.1 * vg.Centimeter
	dpi         = 180
	titleSize   = 15
	labelSize   = 12
	tickSize    = 11
	captionSize = 8.5
)

// palette is Okabe's and Ito's, which can be told apart by the colour-blind, without the yellow that is hard to see on
// white. Lines differ in their dashes, too.
var palette = []color.Color{
	color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}, // blue
	color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}, // vermilion
	color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}, // green
	color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, // purple
	color.RGBA{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff}, // orange
	color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, // sky
	color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}, // grey
	color.RGBA{A: 0xff},                            // black
}

var (
	dashes = [][]vg.Length{nil, {6, 3}, {2, 2}, {8, 3, 2, 3}}
	glyphs = []draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.SquareGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.BoxGlyph{}, draw.TriangleGlyph{},
		draw.CrossGlyph{}, draw.PlusGlyph{},
	}
)

func colorOf(i int) color.Color { return palette[i%len(palette)] }

// lineStyle is that of the i-th line of a plot.
func lineStyle(i int) draw.LineStyle {
	return draw.LineStyle{Color: colorOf(i), Width: 1.8, Dashes: dashes[(i+i/len(palette))%len(dashes)]}
}

func sans(size float64) font.Font {
	return font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, font.Length(size))
}

func style(size float64, c color.Color) text.Style {
	return text.Style{Color: c, Font: sans(size), Handler: plot.DefaultTextHandler}
}

// newFigure is one with an empty plot.
func newFigure(name, title, x, y string) *figure {
	p := plot.New()
	p.X.Label.Text = x
	p.X.Label.TextStyle.Font = sans(labelSize)
	p.X.Label.Padding = 6
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Tick.Label.Font = sans(tickSize)
		axis.LineStyle.Width = 0.8
		axis.Tick.LineStyle.Width = 0.8
	}
	return &figure{name: name, title: title, vertical: y, plot: p, height: height}
}

// Draw writes all figures of a run to a folder, and returns the files.
func Draw(r *result.Run, dir string) ([]string, error) { return drawAt(dpi, r, dir) }

func drawAt(dpi int, r *result.Run, dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("plots: %w", err)
	}
	all, err := figures(r)
	if err != nil {
		return nil, fmt.Errorf("plots: %w", err)
	}
	var files []string
	for _, f := range all {
		f.caption = caption(r)
		total := 2*margin + f.headHeight() + f.height + f.legendHeight() + line
		svg := vgsvg.NewWith(vgsvg.UseWH(width, total))
		png := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, total), vgimg.UseDPI(dpi))}
		for _, out := range []struct {
			extension string
			canvas    vg.CanvasWriterTo
		}{{".svg", svg}, {".png", png}} {
			f.draw(draw.New(out.canvas))
			file := filepath.Join(dir, f.name+out.extension)
			if err := write(file, out.canvas); err != nil {
				return files, fmt.Errorf("plots: %w", err)
			}
			files = append(files, file)
		}
	}
	return files, nil
}

func write(file string, from io.WriterTo) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := from.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// caption says where the figures of a run come from.
func caption(r *result.Run) string {
	commit, changes, _ := strings.Cut(r.Commit, "+")
	if len(commit) > 12 {
		commit = commit[:12]
	}
	if changes != "" {
		commit += "+" + changes
	}
	words := []string{r.Suite, r.Began.Format("2006-01-02"), "commit " + commit}
	for _, key := range []string{"cpu", "cores", "kernel", "kvm", "rdma", "fabric", "dilation"} {
		if value := r.Machine[key]; value != "" {
			words = append(words, key+" "+value)
		}
	}
	return strings.Join(words, ", ")
}

// draw puts title, plot, legend and caption below each other.
func (f *figure) draw(c draw.Canvas) {
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	c = draw.Crop(c, margin, -margin, margin, -margin)
	small := style(captionSize, color.Gray{Y: 0x60})
	c.FillText(small, c.Min, fit(small, f.caption, c.Size().X))
	large := style(titleSize, color.Black)
	large.YAlign = draw.YTop
	c.FillText(large, vg.Point{X: c.Min.X, Y: c.Max.Y}, fit(large, f.title, c.Size().X))
	if f.vertical != "" {
		c.FillText(style(labelSize, color.Black), vg.Point{X: c.Min.X, Y: c.Max.Y - f.headHeight() + line/3}, f.vertical)
	}
	legend := f.legendHeight()
	f.plot.Draw(draw.Crop(c, 0, 0, line+legend, -f.headHeight()))
	f.drawLegend(draw.Crop(c, 0, 0, line, -(c.Size().Y - line - legend)))
}

// headHeight is that of the title and of what stands above the vertical axis.
func (f *figure) headHeight() vg.Length {
	if f.vertical == "" {
		return 2 * line
	}
	return 3 * line
}

// rows names the rows of a plot from below, with names that leave it half of the width.
func (f *figure) rows(names []string) {
	short := make([]string, len(names))
	for i, name := range names {
		short[i] = fit(style(tickSize, nil), name, width/2)
	}
	f.plot.NominalY(short...)
	f.plot.Y.Tick.Label.Font = sans(tickSize)
	f.plot.Y.Min, f.plot.Y.Max = -0.5, float64(len(names))-0.5
}

// fit cuts a text at its end until it is no wider than there is room.
func fit(s text.Style, words string, room vg.Length) string {
	if s.Width(words) <= room {
		return words
	}
	letters := []rune(words)
	for len(letters) > 0 && s.Width(string(letters)+"...") > room {
		letters = letters[:len(letters)-1]
	}
	return string(letters) + "..."
}

// The legend's entries stand in columns of one width, row by row.
func (f *figure) columns() int {
	widest := vg.Length(1)
	for _, e := range f.entries {
		widest = max(widest, style(labelSize, nil).Width(e.text)+thumb+line)
	}
	return min(max(int((width-2*margin)/widest), 1), 4)
}

func (f *figure) legendHeight() vg.Length {
	if len(f.entries) == 0 {
		return 0
	}
	columns := f.columns()
	return line * vg.Length((len(f.entries)+columns-1)/columns+1)
}

func (f *figure) drawLegend(c draw.Canvas) {
	columns := f.columns()
	column := c.Size().X / vg.Length(columns)
	s := style(labelSize, color.Black)
	s.YAlign = draw.YCenter
	for i, e := range f.entries {
		left := c.Min.X + column*vg.Length(i%columns)
		middle := c.Max.Y - line*(vg.Length(i/columns)+1)
		box := draw.Canvas{Canvas: c.Canvas, Rectangle: vg.Rectangle{
			Min: vg.Point{X: left, Y: middle - line/4}, Max: vg.Point{X: left + thumb, Y: middle + line/4},
		}}
		for _, t := range e.thumbs {
			t.Thumbnail(&box)
		}
		c.FillText(s, vg.Point{X: left + thumb + line/3, Y: middle}, fit(s, e.text, column-thumb-line))
	}
}
