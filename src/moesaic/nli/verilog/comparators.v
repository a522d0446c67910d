// The straightforward design, for comparison: SEGMENTS lines y = slope x + intercept, and a comparator for each but the
// first. FP16 in, FP16 out, a result every cycle, 5 cycles later. It has no range reduction.
//
//   load_kind  load_index         load_data
//   0          1 .. SEGMENTS - 1  first x of the segment, FP16
//   1          0 .. SEGMENTS - 1  slope, FP16
//   2          0 .. SEGMENTS - 1  intercept, FP16
//
// slope x is cut off at multiples of 2^-26; it must stay below 2^17, and y below 2^16. SEGMENTS is a power of two.

module nli_comparators #(
    parameter SEGMENTS = @SEGMENTS@
) (
    input  wire        clk,
    input  wire        rst,
    input  wire        load,
    input  wire [1:0]  load_kind,
    input  wire [15:0] load_index,
    input  wire [31:0] load_data,
    input  wire        in_valid,
    input  wire [15:0] in,
    output wire        out_valid,
    output wire [15:0] out
);
    localparam S = $clog2(SEGMENTS);

    function [15:0] key_of(input [15:0] code);
        key_of = code[14:0] == 15'd0 ? 16'h8000 : code[15] ? ~code : {1'b1, code[14:0]};
    endfunction

    reg [15:0] cut_keys [0:SEGMENTS-1];
    always @(posedge clk) if (load && load_kind == 2'd0) cut_keys[load_index[S-1:0]] <= key_of(load_data[15:0]);

    reg [5:1] valid, nan;
    always @(posedge clk) begin
        valid <= rst ? 5'd0 : {valid[4:1], in_valid};
        nan   <= {nan[4:1], (&in[14:10]) & (|in[9:0])};
    end

    // 1. Compare: all segments at once; the ones of the thermometer are counted by halving.
    wire [15:0] x = &in[14:10] ? {in[15], 15'h7BFF} : in;
    wire [15:0] key = key_of(x);
    wire [SEGMENTS-1:0] reached;
    assign reached[0] = 1'b1;
    genvar s;
    generate
        for (s = 1; s < SEGMENTS; s = s + 1) begin : compare
            assign reached[s] = key >= cut_keys[s];
        end
    endgenerate
    reg [S-1:0] segment;
    integer b;
    always @* begin
        segment = 0;
        for (b = S - 1; b >= 0; b = b - 1) segment[b] = reached[segment + (1 << b)];
    end

    reg [S-1:0] segment1;
    reg [15:0]  x1;
    always @(posedge clk) begin
        segment1 <= segment;
        x1       <= x;
    end

    // 2. Read the line.
    wire [15:0] slope, intercept;
    nli_bank #(.DEPTH(SEGMENTS)) slopes (
        .clk(clk), .write(load && load_kind == 2'd1), .write_at(load_index[S-1:0]), .write_word(load_data[15:0]),
        .read_at(segment1), .read_word(slope)
    );
    nli_bank #(.DEPTH(SEGMENTS)) intercepts (
        .clk(clk), .write(load && load_kind == 2'd2), .write_at(load_index[S-1:0]), .write_word(load_data[15:0]),
        .read_at(segment1), .read_word(intercept)
    );
    reg [15:0] x2;
    always @(posedge clk) x2 <= x1;

    // 3. Multiply: product[21] stands for 2^(above - 29).
    wire x_normal = |x2[14:10];
    wire slope_normal = |slope[14:10];
    reg [21:0] product3;
    reg [5:0]  above3;
    reg        falls3;
    reg [15:0] intercept3;
    always @(posedge clk) begin
        product3   <= {x_normal, x2[9:0]} * {slope_normal, slope[9:0]};
        above3     <= {1'b0, x_normal ? x2[14:10] : 5'd1} + {1'b0, slope_normal ? slope[14:10] : 5'd1};
        falls3     <= x2[15] ^ slope[15];
        intercept3 <= intercept;
    end

    // 4. Add, in multiples of 2^-26; rounded a cycle later.
    wire [57:0] change = {product3, 36'd0} >> (6'd60 - above3);
    wire        negative;
    wire [41:0] magnitude;
    nli_add add (
        .y(intercept3), .falls(falls3), .change(change[42:0]), .negative(negative), .magnitude(magnitude)
    );

    reg        negative4;
    reg [41:0] magnitude4;
    always @(posedge clk) begin
        negative4  <= negative;
        magnitude4 <= magnitude;
    end

    wire [15:0] rounded;
    nli_round round (.negative(negative4), .magnitude(magnitude4), .room(6'd29), .code(rounded));
    reg [15:0] result;
    always @(posedge clk) result <= nan[4] ? 16'h7E00 : rounded;
    assign out = result;
    assign out_valid = valid[5];
endmodule
