package servers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
)

// Up brings up a lab with so many servers; words are further flags of `lab up`. What the lab says of its progress goes to
// progress. After an error there is no lab.
func (l Lab) Up(ctx context.Context, servers int, progress io.Writer, words ...string) error {
	cmd := l.command(ctx, append([]string{"up", "--servers", strconv.Itoa(servers)}, words...)...)
	var complaint bytes.Buffer
	cmd.Stderr = io.MultiWriter(&complaint, progress)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("servers: lab up: %w", failure(err, complaint.String()))
	}
	return nil
}

// Down ends the lab.
func (l Lab) Down(ctx context.Context) error {
	if _, err := l.output(ctx, "down"); err != nil {
		return fmt.Errorf("servers: lab down: %w; bin/lab --name %s down ends what is left", err, l.Name)
	}
	return nil
}
